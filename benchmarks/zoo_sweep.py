"""Any CNN onto its budget: the sweep over 142 networks of torchvision and timm.

    python -m benchmarks.zoo_sweep [NAME …] [--names FILE] [--budget macs=0.5] [--round-to 8] [--image-size 64]
                                   [--jobs 1] [--skip deliver verify] [--torch-pruning] [--json FILE]

NAME is `torchvision:resnet18`, `timm:resnet18`, …; without names, those of `zoo_names.txt`. Weights are random, with every
constant parameter and every statistic drawn by seed (`benchmarks.zoo`). Each network has a process of its own with a
time limit, so that a hang or a crash is a line of the table and not the end. Stages are timed apart: export; then
folding, analysis, scores, plan and apply, which together are "prune"; then the masked reference in float64, ONNX against
ONNX Runtime, and `model.py` with its safetensors in a bare interpreter. With `--json` rows are written as they come, and
rows that are there are not run again.

`--torch-pruning` runs Torch-Pruning 1.6.1 beside ours on the same weights (`benchmarks.zoo_torch_pruning`). It is not a
dependency of this project: `pip install --no-deps torch-pruning==1.6.1`, or put it on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks.zoo import NAMES_FILE, Row, in_own_process, parse_budget, read_names
from benchmarks.zoo_table import console, goals, network_table, print_report, problem_lines
from core.architectures import get_architecture
from core.errors import EngineError

TIME_LIMIT_S = 900.0
# Torch-Pruning ends in about a minute on the largest networks, or not at all.
RIVAL_TIME_LIMIT_S = 150.0


def main() -> int:
    arguments = _arguments()
    names = arguments.names_given or read_names(arguments.names)
    _check(names, arguments)
    rows = sweep(
        names,
        json_file=arguments.json,
        jobs=arguments.jobs,
        options=model_options(arguments),
        limit_s=arguments.time_limit,
        rival=_rival_options(arguments) if arguments.torch_pruning else None,
    )
    print_report(rows, network_table(rows, rival=arguments.torch_pruning), goals(rows))
    return 0 if all(goal.reached is not False for goal in goals(rows)) else 1


def sweep(
    names: Sequence[str],
    *,
    json_file: Path | None,
    jobs: int,
    options: Sequence[str],
    limit_s: float,
    rival: Sequence[str] | None = None,
) -> list[Row]:
    """One row per name, in the order of the names. Rows that `json_file` has with the same options are kept."""
    kept = _Rows(json_file, list(options), rival is not None)
    waiting = [name for name in names if name not in kept.rows]
    if len(waiting) < len(names):
        console.print(f"{len(names) - len(waiting)} of {len(names)} rows are in {json_file} already.")

    def run(name: str) -> Row:
        row = in_own_process("benchmarks.zoo_model", [name, *options], limit_s=limit_s)
        row["name"] = name
        if rival is not None:
            row["torch_pruning"] = in_own_process(
                "benchmarks.zoo_torch_pruning", [name, *rival], limit_s=RIVAL_TIME_LIMIT_S
            )
        return row

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run, name) for name in waiting]
        for done, future in enumerate(as_completed(futures), start=1):
            row = future.result()
            kept.add(row)
            _tell(row, done, len(waiting))
    return [kept.rows[name] for name in names]


class _Rows:
    """The rows so far, on disk after each one."""

    def __init__(self, path: Path | None, options: list[str], rival: bool) -> None:
        self._path = path
        self._head = {"options": options, "torch_pruning": rival}
        self._lock = threading.Lock()
        self.rows: dict[str, Row] = {}
        if path is not None and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if {key: found.get(key) for key in self._head} != self._head:
                raise SystemExit(f"{path} has rows of a run with other options; give another file.")
            self.rows = {row["name"]: row for row in found["rows"]}

    def add(self, row: Row) -> None:
        with self._lock:
            self.rows[row["name"]] = row
            if self._path is not None:
                fresh = self._path.with_suffix(".tmp")
                text = json.dumps({**self._head, "rows": list(self.rows.values())}, indent=1, default=str)
                fresh.write_text(text + "\n", encoding="utf-8")
                fresh.replace(self._path)


def _tell(row: Row, done: int, total: int) -> None:
    line = f"{done:>4}/{total} {row['name']:<44} {row['status']:<8} {row['wall_s']:>7.1f} s"
    if "below" in row:
        line += f"   {row['below']:.3%} below the cap, prune {row['prune_s']:.2f} s"
    problems = problem_lines([row])
    console.print(
        line + (f"   {problems[0].plain.removeprefix(row['name']).strip()[:90]}" if problems else ""), markup=False
    )


def model_options(arguments: argparse.Namespace) -> list[str]:
    """The options of one network's process."""
    options = ["--budget", arguments.budget, "--round-to", str(arguments.round_to), "--seed", str(arguments.seed)]
    if arguments.image_size:
        options += ["--image-size", str(arguments.image_size)]
    return options + [f"--no-{stage}" for stage in sorted(arguments.skip)]


def _rival_options(arguments: argparse.Namespace) -> list[str]:
    options = ["--seed", str(arguments.seed)]
    if arguments.image_size:
        options += ["--image-size", str(arguments.image_size)]
    macs = next((cap.max_ratio for cap in parse_budget(arguments.budget).caps if cap.metric == "macs"), None)
    if macs is None:
        raise SystemExit("Torch-Pruning is run on a MACs budget; give one with --budget macs=…")
    return [*options, "--ratio", str(macs)]


def _check(names: Sequence[str], arguments: argparse.Namespace) -> None:
    """Mistakes are told before the first network runs."""
    if arguments.torch_pruning and importlib.util.find_spec("torch_pruning") is None:
        raise SystemExit("torch_pruning cannot be imported: pip install --no-deps torch-pruning==1.6.1")
    try:
        parse_budget(arguments.budget)
        for name in names:
            get_architecture(name)
    except (EngineError, ValueError) as error:
        raise SystemExit(str(error)) from None


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments that every benchmark over the zoo has."""
    parser.add_argument("names_given", metavar="NAME", nargs="*", help="e.g. torchvision:resnet18")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time; times are comparable with 1 only")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT_S, help="seconds per network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, help="height and width in place of each network's own")
    parser.add_argument("--json", type=Path, help="write every row here as it comes; go on where it ends")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--names", type=Path, default=NAMES_FILE, help="file with one name per line")
    parser.add_argument("--budget", default="macs=0.5", help="ratios, e.g. macs=0.5+params=0.6")
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--skip", nargs="+", choices=["deliver", "verify"], default=[], help="for a quick run")
    parser.add_argument("--torch-pruning", action="store_true", help="run Torch-Pruning beside ours")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
