"""What the budget gives in time: ONNX Runtime at batch 1 on one thread, original against compressed.

    python -m benchmarks.latency [NAME …] [--budget macs=0.5] [--rounds 1 8] [--json FILE]

Per network the median of runs that take turns (`core.deliver.latency`), for widths as they fall and for widths in multiples
of eight. Runs alone: what else the machine does meets both networks alike, but moves both numbers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence

from rich.table import Table

from benchmarks.zoo import Row
from benchmarks.zoo_sweep import add_common, sweep
from benchmarks.zoo_table import Goal, percent, print_report

NAMES = [
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:vgg11_bn",
    "torchvision:densenet121",
    "torchvision:mobilenet_v2",
    "torchvision:efficientnet_b0",
    "torchvision:regnet_x_400mf",
    "torchvision:convnext_tiny",
    "timm:repvgg_a0",
    "timm:cspresnet50",
]


def main() -> int:
    arguments = _arguments()
    by_round: dict[int, list[Row]] = {}
    for round_to in arguments.rounds:
        options = ["--budget", arguments.budget, "--seed", str(arguments.seed), "--no-verify", "--latency"]
        options += ["--round-to", str(round_to)]
        options += ["--image-size", str(arguments.image_size)] if arguments.image_size else []
        file = arguments.json.with_suffix(f".round{round_to}.json") if arguments.json else None
        by_round[round_to] = sweep(
            arguments.names_given or NAMES,
            json_file=file,
            jobs=1,
            options=options,
            limit_s=arguments.time_limit,
        )
    rows = [row for found in by_round.values() for row in found]
    print_report(rows, _table(by_round), _goals(by_round))
    return 0 if all(row["status"] == "pruned" for row in rows) else 1


def _table(by_round: Mapping[int, Sequence[Row]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("network", no_wrap=True)
    table.add_column("original", justify="right")
    for round_to in by_round:
        for heading in ("MACs left", "p50", "of original"):
            table.add_column(f"round_to {round_to}\n{heading}", justify="right")
    for found in zip(*by_round.values(), strict=True):
        times = [row.get("latency_ms") for row in found]
        first = next((pair[0] for pair in times if pair), None)
        cells = [found[0]["name"], "" if first is None else f"{first:.2f} ms"]
        for row, pair in zip(found, times, strict=True):
            left = row["after"]["macs"] / row["before"]["macs"] if "after" in row else None
            cells += [
                percent(left, 1),
                *(("", "") if not pair else (f"{pair[1]:.2f} ms", percent(pair[1] / pair[0], 1))),
            ]
        table.add_row(*cells)
    return table


def _goals(by_round: Mapping[int, Sequence[Row]]) -> list[Goal]:
    found = []
    for round_to, rows in by_round.items():
        ratios = [row["latency_ms"][1] / row["latency_ms"][0] for row in rows if row.get("latency_ms")]
        if ratios:
            name = f"p50 of the original's, median network, round_to {round_to}"
            found.append(Goal(name, "–", percent(statistics.median(ratios), 1), None))
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--budget", default="macs=0.5")
    parser.add_argument("--rounds", nargs="+", type=int, default=[1, 8], help="values of round_to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
