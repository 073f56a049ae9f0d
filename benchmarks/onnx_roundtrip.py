"""ONNX files in and out: every file of a folder onto a budget, and networks that return from ONNX.

    python -m benchmarks.onnx_roundtrip --data DIR [--budget macs=0.6] [--json FILE]
    python -m benchmarks.onnx_roundtrip --zoo [NAME …] [--budget macs=0.6] [--image-size 64] [--json FILE]

`--data`: each file is imported and compared with ONNX Runtime on the file itself, compressed without data, verified against
the masked reference and delivered; the delivered file is opened again and must have the names and order of inputs and
outputs that the upload has. A file that leaves height or width open is used at the size that the refusal proposes. A file
that is refused is a row with the reason.

`--zoo`: each network is written as ONNX, imported again, and pruned to the same budget as from its weights; one that cannot
run at the image size runs at the next that it can. Without names those of `zoo_names.txt`. Every file and every network has
a process of its own with a time limit, forked from one that has the libraries loaded.

With `--json` every row is written as it comes, and a run that finds the file of one before goes on where that stopped: rows
of the same budget, seed, image size and opset are taken as they are, but those that crashed or hung are made again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich.table import Table

from benchmarks.zoo import Row, export, parse_budget, read_names, write_row
from benchmarks.zoo_model import prune
from benchmarks.zoo_table import console, count, passed, percent, seconds
from core.deliver.difference import relative_error
from core.deliver.onnx_file import write_onnx
from core.deliver.onnx_graph import DEFAULT_OPSET
from core.engine import compress
from core.errors import EngineError
from core.intake import load_network
from core.network import Network
from core.request import CompressionRequest

TIME_LIMIT_S = 900.0
IMPORT_TOLERANCE = 1e-4
LARGEST_SIZE = 224
ANOTHER_FORM = 0.03
# What every export loads, slowly; loaded before the processes part.
_LIBRARIES = ("timm", "torchvision", "torch.export", "torch.fx.experimental.symbolic_shapes", "torch._dynamo")


def main() -> int:
    arguments = _arguments()
    if arguments.data:
        names = [str(path) for path in sorted(arguments.data.glob("*.onnx"))]
    else:
        names = arguments.names_given or read_names()
        for library in _LIBRARIES:
            importlib.import_module(library)
    one = _compressed if arguments.data else _returned
    made = {
        "budget": arguments.budget,
        "seed": arguments.seed,
        "image_size": arguments.image_size,
        "opset": DEFAULT_OPSET,
    }
    before = _earlier_rows(arguments.json, made)
    rows: list[Row] = []
    for name in names:
        shown = Path(name).name if arguments.data else name
        row = before.get(shown)
        if row is None:
            found = _in_fork(one, name, arguments)
            row = {"name": shown, **found, "made": made}
            console.print(f"{len(rows) + 1}/{len(names)} {shown}: {row['status']}")
        rows.append(row)
        if arguments.json:
            # Rows that are still to come stay in the file: a run that is stopped loses none of them.
            shown_rows = {one["name"]: one for one in [*before.values(), *rows]}
            write_row(arguments.json, list(shown_rows.values()))
    console.print(_files_table(rows) if arguments.data else _zoo_table(rows))
    for row in rows:
        if row.get("error"):
            console.print(f"{row['name']}: {row['error']}")
    wrong = [row["name"] for row in rows if row["status"] not in ("compressed", "refused", "same")]
    console.print(f"{len(rows)} in all, {len(wrong)} of them wrong{': ' + ', '.join(wrong) if wrong else ''}.")
    return 1 if wrong else 0


def _earlier_rows(path: Path | None, made: Row) -> dict[str, Row]:
    """Rows of a run before, by name, as far as they count for this one."""
    if path is None or not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {row["name"]: row for row in rows if row.get("made") == made and row["status"] not in ("crashed", "hung")}


def _in_fork(one: Callable[[str, argparse.Namespace], Row], name: str, arguments: argparse.Namespace) -> Row:
    """The row that `one` makes; that of a process which died or was stopped at its limit says so."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        process = multiprocessing.get_context("fork").Process(target=_work, args=(one, name, arguments, path))
        process.start()
        process.join(arguments.time_limit)
        hung = process.is_alive()
        if hung:
            process.kill()
            process.join()
        row: Row = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    row["wall_s"] = round(time.perf_counter() - started, 2)
    if hung:
        row |= {"status": "hung", "error": f"not finished after {arguments.time_limit:g} s"}
    elif process.exitcode != 0:
        row |= {"status": "crashed", "error": f"exit status {process.exitcode}"}
    return row


def _work(one: Callable[[str, argparse.Namespace], Row], name: str, arguments: argparse.Namespace, path: Path) -> None:
    torch.set_num_threads(1)
    write_row(path, one(name, arguments))


def _compressed(name: str, arguments: argparse.Namespace) -> Row:
    """One file onto the budget. `status`: compressed, refused by name, or failed."""
    path, started = Path(name), time.perf_counter()
    row: Row = {"bytes": path.stat().st_size}
    try:
        network, shapes = _imported(path)
        row |= {"input_shape": {spec.name: list(spec.shape) for spec in network.inputs}, "chosen_shape": bool(shapes)}
        row["import_error"] = _import_error(path, network)
        with tempfile.TemporaryDirectory() as folder:
            request = CompressionRequest(
                path, parse_budget(arguments.budget), input_shape=shapes or None, device="cpu", seed=arguments.seed
            )
            result = compress(request, Path(folder))
            row["same_interface"] = _signature(path) == _signature(Path(folder) / "model.onnx")
    except EngineError as error:
        refused = error.code in ("unsupported_format", "target_infeasible", "invalid_model")
        return row | {"status": "refused" if refused else "failed", "error": f"{error.code}: {error.message}"}
    latencies = {side: (result[side]["latency_ms"] or {}).get("p50") for side in ("baseline", "compressed")}
    row |= {
        "macs": [result[side]["macs"] for side in ("baseline", "compressed")],
        "met": result["met"],
        "verified": result["equivalence"]["passed"],
        "verify_error": result["equivalence"]["max_relative_error"],
        "latency_ms": list(latencies.values()),
        "seconds": round(time.perf_counter() - started, 2),
    }
    good = row["met"] and row["verified"] and row["same_interface"] and row["import_error"] <= IMPORT_TOLERANCE
    return row | {"status": "compressed" if good else "failed"}


def _imported(path: Path) -> tuple[Network, dict[str, Sequence[int]]]:
    """The network, and the shapes that had to be given because the file leaves them open."""
    shapes: dict[str, Sequence[int]] = {}
    while True:
        try:
            return load_network(path, architecture=None, input_shape=shapes or None), shapes
        except EngineError as error:
            example: Mapping[str, Sequence[int]] = (error.details or {}).get("example", {})
            if error.code != "shape_mismatch" or not example or example.keys() <= shapes.keys():
                raise
            shapes |= example


def _import_error(path: Path, network: Network) -> float:
    """The largest relative difference of an output of the file: the network in PyTorch against ONNX Runtime."""
    inputs = network.random_inputs(batch=1, seed=11)
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(network.inputs, inputs, strict=True)}
    values = {spec.name: one.numpy() for spec, one in zip(network.outputs, network.run(*inputs), strict=True)}
    session = _session(path.read_bytes())
    names = [one.name for one in session.get_outputs()]
    if network.interface.tail:
        tail = _session(network.interface.tail)
        given = {one.name: {**feeds, **values}[one.name] for one in tail.get_inputs()}
        values = dict(zip(names, tail.run(names, given), strict=True))
    wanted = session.run(names, feeds)
    return max(relative_error(np.asarray(values[name]), want) for name, want in zip(names, wanted, strict=True))


def _session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = max(1, torch.get_num_threads())
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _signature(path: Path) -> tuple[list[tuple[str, list[object]]], list[str]]:
    """Names of inputs with their axes (None where open), and names of outputs, in order."""
    session = _session(path.read_bytes())
    inputs = [
        (one.name, [size if isinstance(size, int) else None for size in one.shape]) for one in session.get_inputs()
    ]
    return inputs, [one.name for one in session.get_outputs()]


def _returned(name: str, arguments: argparse.Namespace) -> Row:
    """One network of the sweep, pruned from its weights and pruned after a trip through ONNX."""
    row: Row = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            network, again, row["import_s"] = _read_back(name, arguments, Path(folder) / "model.onnx")
            row["input_shape"] = list(network.inputs[0].shape)
        inputs = network.random_inputs(batch=1, seed=11)
        row["import_error"] = max(
            relative_error(got.numpy(), want.numpy())
            for got, want in zip(again.run(*inputs), network.run(*inputs), strict=True)
        )
        for side, one in (("weights", network), ("onnx", again)):
            row[side] = prune(one, arguments.budget, seed=arguments.seed)
    except EngineError as error:
        return row | {"status": "failed", "error": f"{error.code}: {error.message}"}
    below = [row[side].get("below") for side in ("weights", "onnx")]
    macs = [row[side].get("before", {}).get("macs") for side in ("weights", "onnx")]
    row |= {"macs_before": macs, "below": below}
    if row["weights"]["status"] != row["onnx"]["status"] or not _alike(*macs):
        return row | {"status": "different", "error": row["onnx"].get("error") or "MACs before pruning differ"}
    close = below[0] is None or abs(below[1] - below[0]) <= 0.01
    return row | {"status": "same" if close else "different"}


def _alike(own: int | None, written: int | None) -> bool:
    """A table of positions, computed from weights alone, is one tensor in the file; an odd pooling is a product there."""
    return own == written or (own is not None and written is not None and abs(written / own - 1) <= ANOTHER_FORM)


def _read_back(name: str, arguments: argparse.Namespace, path: Path) -> tuple[Network, Network, float]:
    """The network, what is read of its file, and the seconds of reading; at the size asked for, or at the next, half as
    large again, that can be had.

    Windows may not fit into a small image, and random weights may magnify rounding there beyond any comparison.
    """
    size = arguments.image_size
    while size is not None and size < LARGEST_SIZE:
        try:
            return _read_back_at(size, name, arguments, path)
        except (RuntimeError, AssertionError, ValueError, EngineError):
            size += size // 2
    return _read_back_at(None, name, arguments, path)


def _read_back_at(
    size: int | None, name: str, arguments: argparse.Namespace, path: Path
) -> tuple[Network, Network, float]:
    network = export(name, seed=arguments.seed, image_size=size)
    write_onnx(network, path)
    started = time.perf_counter()
    again = load_network(path, architecture=None)
    return network, again, round(time.perf_counter() - started, 2)


def _files_table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("file", "result"):
        table.add_column(heading, no_wrap=True)
    for heading in ("import error", "MACs", "after", "left", "masked error", "ms before", "after", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("interface", justify="center")
    for row in rows:
        before, after = row.get("macs", (None, None))
        numbers = [_error(row.get("import_error")), count(before), count(after)]
        numbers += [percent(after / before if before else None, 2), _error(row.get("verify_error"))]
        numbers += [seconds(value) for value in row.get("latency_ms", (None, None))]
        table.add_row(
            row["name"], row["status"], *numbers, seconds(row.get("seconds")), passed(row.get("same_interface"))
        )
    return table


def _zoo_table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("network", "result"):
        table.add_column(heading, no_wrap=True)
    for heading in ("import error", "MACs", "in the file", "below, from weights", "below, from ONNX", "import s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        below = row.get("below", (None, None))
        table.add_row(
            row["name"],
            row["status"],
            _error(row.get("import_error")),
            *map(count, row.get("macs_before", (None, None))),
            *map(percent, below),
            seconds(row.get("import_s")),
        )
    return table


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names_given", nargs="*", metavar="NAME")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--data", type=Path, help="folder of .onnx files")
    what.add_argument("--zoo", action="store_true", help="networks of the sweep")
    parser.add_argument("--budget", default="macs=0.6")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT_S)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.data and not arguments.zoo:
        parser.error("give --data DIR or --zoo")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
