"""The rows of `benchmarks.onnx_roundtrip` as a page.

    python -m benchmarks.onnx_roundtrip_page --files FILES.json --zoo ZOO.json > docs/onnx_roundtrip.md

FILES.json and ZOO.json are what its `--json` wrote for `--data` and for `--zoo`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.zoo import Row, read_names
from benchmarks.zoo_table import count, percent

_INTRODUCTION = """\
# ONNX in and out, measured

Written by `python -m benchmarks.onnx_roundtrip_page --files FILES.json --zoo ZOO.json > docs/onnx_roundtrip.md` from what two
runs of `benchmarks.onnx_roundtrip` wrote with `--json`. The budget is 60 % of the multiply-accumulates, without data; files
are written in opset {opset}.
"""
_FILES = """\
## Files of other producers

`python -m benchmarks.onnx_roundtrip --data DIR`. *Import error*: the largest relative difference of an output between the
imported network and ONNX Runtime on the file. *Masked error*: of the pruned network against its masked reference, in float64.
Latency: ONNX Runtime, one thread, batch 1, median; both files by turns. *Interface*: names, order and open axes of inputs and
outputs of the delivered file are the upload's.
"""
_ZOO = """\
## Networks of the sweep, through ONNX and back

`python -m benchmarks.onnx_roundtrip --zoo --image-size {size}`. Each network is written as ONNX, imported again, and pruned to the same
budget as from its weights; one that cannot run or be compared at that size is at the next that can. *Below*: how far under the cap it
lands. A network is the *same* where its cost before is equal (or within 3 %: what is computed from weights alone is one tensor
in the file, and an odd pooling is a product there), both are verified against the masked reference, and both land within 1 %
of the cap of each other. Convolutions with weights of their own for each image are one grouped convolution in PyTorch, with as
many groups as images; ONNX's number of groups is a constant, so the file computes every expert instead, which costs more.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    arguments = parser.parse_args()
    files, zoo = (json.loads(path.read_text(encoding="utf-8")) for path in (arguments.files, arguments.zoo))
    sys.stdout.write(page(files, zoo))


def page(files: Sequence[Row], zoo: Sequence[Row]) -> str:
    """Markdown of both tables. Raises ValueError for rows of several runs that do not belong together."""
    made = {json.dumps(row["made"], sort_keys=True) for row in zoo}
    if len(made) != 1 or {row["made"]["opset"] for row in files} != {zoo[0]["made"]["opset"]}:
        raise ValueError("the rows are of runs with different options")
    parts = [
        _INTRODUCTION.format(opset=zoo[0]["made"]["opset"]),
        _FILES,
        _files_table(files),
        *(f"- `{row['name']}`: {row['error']}" for row in files if row.get("error")),
        "",
        _ZOO.format(size=zoo[0]["made"]["image_size"]),
        _summary(zoo),
        "",
        _zoo_table(zoo),
        *(f"- `{row['name']}`: {row['error']}" for row in zoo if row.get("error")),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


def _files_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        before, after = row.get("macs", (None, None))
        slow, fast = row.get("latency_ms", (None, None))
        lines.append(
            (
                f"`{row['name']}`",
                row["status"],
                _error(row.get("import_error")),
                count(before),
                count(after),
                percent(after / before if before else None, 2),
                _error(row.get("verify_error")),
                _figure(slow),
                _figure(fast),
                _figure(row.get("seconds")),
                "yes" if row.get("same_interface") else "",
            )
        )
    heads = (
        "file",
        "result",
        "import error",
        "MACs",
        "after",
        "left",
        "masked error",
        "ms before",
        "ms after",
        "seconds",
    )
    return _table((*heads, "interface"), lines)


def _summary(rows: Sequence[Row]) -> str:
    counts = Counter(row["status"] for row in rows)
    missing = sorted(set(read_names()) - {row["name"] for row in rows})
    errors = [row["import_error"] for row in rows if row.get("import_error") is not None]
    said = ", ".join(f"{number} {status}" for status, number in counts.most_common())
    text = (
        f"{len(rows)} of {len(read_names())} networks: {said}. Import error: median {statistics.median(errors):.1e}, largest "
        f"{max(errors):.1e}."
    )
    return text + (f" Not run: {', '.join(missing)}." if missing else "")


def _zoo_table(rows: Sequence[Row]) -> str:
    return _table(
        (
            "network",
            "result",
            "image",
            "import error",
            "MACs",
            "in the file",
            "below, from weights",
            "below, from ONNX",
        ),
        [
            (
                row["name"],
                row["status"],
                f"{row['input_shape'][-1]} px" if "input_shape" in row else f"{row['made']['image_size']} px",
                _error(row.get("import_error")),
                *map(count, row.get("macs_before", (None, None))),
                *map(percent, row.get("below", (None, None))),
            )
            for row in sorted(rows, key=lambda row: row["name"])
        ],
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * 2 + "---:|" * (len(head) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
