"""The three complexity modes at one budget, beside uniform width and L1 pruning with the same training.

    python -m benchmarks.complexity_modes --data FOLDER [--ratio 0.5] [--epochs 1] [--seeds 0 1 2] [--json F] [--svg F]
        [--train-images N] [--test-images N]

FOLDER holds `checkpoints/resnet20-cifar10.th` and `cifar10/*.parquet`. Parameter-, FLOPs- and memory-aware widths (PA, FA,
MA) are drawn once per seed, all on the same share of the MACs; every network starts from the trained weights that stay
and goes through the same recovery. `--train-images` and `--test-images` shorten a trial; the figures are then of that
trial. The printed spread is the standard deviation over seeds; the baselines draw nothing, so their seed only orders
the training images. A run that F already has is not measured again, so that the table can be made in pieces. `--svg` draws
the trade-off.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rows import Rows
from benchmarks.scores import cifar10
from core.analysis import profile
from core.budget import Budget, Cap
from core.choice import Chooser
from core.intake import load_network
from core.network import Network
from core.recovery import ImageDataset, RecoveryConfig, recover
from core.surgery import apply, kept_indices

WAYS: dict[str, dict[str, Any]] = {
    "complexity PA": {"type": "complexity", "mode": "params"},
    "complexity FA": {"type": "complexity", "mode": "flops"},
    "complexity MA": {"type": "complexity", "mode": "memory"},
    "uniform width": {"type": "magnitude", "norm": 1, "ranking": "per_layer"},
    "L1 + fine-tune": {"type": "magnitude", "norm": 1},
}
FIGURES = ("params", "macs", "memory_bytes", "accuracy", "train_s")


def main() -> None:
    arguments = _arguments()
    original = load_network(arguments.data / "checkpoints" / "resnet20-cifar10.th", architecture="cifar_resnet20")
    dataset = cifar10(arguments.data / "cifar10", arguments.train_images, arguments.test_images)
    shared = {
        "ratio": arguments.ratio,
        "epochs": arguments.epochs,
        "train_images": len(dataset.train),
        "test_images": len(dataset.test),
    }
    runs = Rows(arguments.json, shared)
    for (name, method), seed in itertools.product(WAYS.items(), arguments.seeds):
        key = {"way": name, "seed": seed}
        if runs.has(key):
            continue
        run = _run(original, dataset, method, seed, arguments)
        runs.add(key, run)
        print(f"{name}, seed {seed}: {run['accuracy']:.4f}", flush=True)
    rows = [_summary(name, [run for run in runs.all if run["way"] == name]) for name in WAYS]
    _print(rows)
    (cap,) = Budget((Cap("macs", max_ratio=arguments.ratio),)).constraints(profile(original).costs)
    below = max(1 - run["macs"] / cap.limit for run in runs.all)
    print(f"Cap: {cap.limit:,} MACs; no run is more than {below:.3%} below it.")
    print(f"Trained {arguments.epochs} epochs on {len(dataset.train):,} images, tested on {len(dataset.test):,}.")
    if arguments.svg:
        arguments.svg.write_text(_svg(rows, arguments.ratio), encoding="utf-8")


def _run(
    original: Network, dataset: ImageDataset, method: dict[str, Any], seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Costs, test accuracy and seconds of recovery of one network."""
    constraints = Budget((Cap("macs", max_ratio=arguments.ratio),)).constraints(profile(original).costs)
    choice = Chooser(original, method, seed=seed).choose(constraints)
    network = apply(original, choice.analysis, choice.plan.keep)
    started = time.perf_counter()
    recovered = recover(
        network,
        original,
        dataset,
        RecoveryConfig(epochs=arguments.epochs),
        kept=kept_indices(choice.analysis, choice.plan.keep),
        seed=seed,
    )
    seconds = time.perf_counter() - started
    costs = profile(recovered.network).costs.as_dict()
    return {
        **{name: costs[name] for name in ("params", "macs", "memory_bytes")},
        "accuracy": recovered.accuracy_after,
        "original_accuracy": recovered.accuracy_original,
        "train_s": seconds,
    }


def _summary(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of every figure."""
    row: dict[str, Any] = {"way": name, "seeds": len(runs)}
    for figure in FIGURES:
        values = [run[figure] for run in runs]
        row[figure] = statistics.fmean(values)
        row[f"{figure}_spread"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return row


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("way", "seeds", "params", "MACs", "memory", "test accuracy", "recovery")
    for row in rows:
        cells = [f"{row[name]:,.0f} ± {row[f'{name}_spread']:,.0f}" for name in ("params", "macs", "memory_bytes")]
        accuracy = f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_spread']:.2f} %"
        table.add_row(row["way"], str(row["seeds"]), *cells, accuracy, f"{row['train_s']:.0f} s")
    Console(highlight=False, width=150).print(table)


def _svg(rows: Sequence[dict[str, Any]], ratio: float) -> str:
    """Accuracy against parameters and against memory, one point per way, its spread as a line."""
    panels = (("params", "parameters"), ("memory_bytes", "bytes of memory"))
    pictures = "".join(
        f'<g transform="translate(0 {300 * at})">{_scatter(rows, figure, title)}</g>'
        for at, (figure, title) in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 {300 * len(panels)}" font-family="sans-serif" '
        f'font-size="12"><title>Test accuracy of the ways at {ratio:.0%} of the MACs</title>{pictures}</svg>\n'
    )


def _scatter(rows: Sequence[dict[str, Any]], figure: str, title: str) -> str:
    xs = [row[figure] for row in rows]
    lows = [row["accuracy"] - row["accuracy_spread"] for row in rows]
    highs = [row["accuracy"] + row["accuracy_spread"] for row in rows]

    def x_of(value: float) -> float:
        return 80 + 460 * (value - min(xs)) / ((max(xs) - min(xs)) or 1)

    def y_of(value: float) -> float:
        return 250 - 230 * (value - min(lows)) / ((max(highs) - min(lows)) or 1)

    points = "".join(
        f'<path d="M{x_of(row[figure]):.1f} {y_of(low):.1f}V{y_of(high):.1f}" stroke="#2f6fde"/>'
        f'<circle cx="{x_of(row[figure]):.1f}" cy="{y_of(row["accuracy"]):.1f}" r="5" fill="#2f6fde"/>'
        f'<text x="{x_of(row[figure]) + 9:.1f}" y="{y_of(row["accuracy"]) + 4:.1f}">{escape(row["way"])}</text>'
        for row, low, high in zip(rows, lows, highs, strict=True)
    )
    return (
        f'<path d="M60 10V262H660" fill="none" stroke="#888"/><text x="54" y="24" text-anchor="end">{max(highs):.1%}</text>'
        f'<text x="54" y="254" text-anchor="end">{min(lows):.1%}</text><text x="80" y="280">{min(xs):,.0f}</text>'
        f'<text x="660" y="280" text-anchor="end">{max(xs):,.0f} {title}</text>{points}'
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with checkpoints/ and cifar10/")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the MACs")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-images", type=int, help="train on so many images only")
    parser.add_argument("--test-images", type=int, help="measure on so many images only")
    parser.add_argument("--json", type=Path, help="every run; those that it has are not measured again")
    parser.add_argument("--svg", type=Path, help="also draw the trade-off")
    return parser.parse_args()


if __name__ == "__main__":
    main()
