"""Several caps at once: parameters 40 %, MACs 50 % and activations 60 % together, on twenty networks.

    python -m benchmarks.multi_budget [NAME …] [--budget params=0.4+macs=0.5+memory.activations=0.6] [--jobs 1] [--json FILE]

All caps must be met; how much of each is used says which one binds. Every landing is checked against the masked
reference, and its costs are counted on the pruned network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from benchmarks.zoo import Row
from benchmarks.zoo_sweep import add_common, sweep
from benchmarks.zoo_table import Goal, passed, percent, print_report, seconds

NAMES = [
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:vgg11_bn",
    "torchvision:densenet121",
    "torchvision:googlenet",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_large",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:squeezenet1_1",
    "torchvision:regnet_x_400mf",
    "torchvision:efficientnet_b0",
    "torchvision:mnasnet1_0",
    "torchvision:convnext_tiny",
    "timm:seresnet18",
    "timm:res2net50_26w_4s",
    "timm:cspresnet50",
    "timm:ghostnet_100",
    "timm:resnest14d",
    "timm:repvgg_a0",
    "timm:dla34",
]
BUDGET = "params=0.4+macs=0.5+memory.activations=0.6"


def main() -> int:
    arguments = _arguments()
    options = ["--budget", arguments.budget, "--seed", str(arguments.seed), "--no-deliver"]
    options += ["--image-size", str(arguments.image_size)] if arguments.image_size else []
    rows = sweep(
        arguments.names_given or NAMES,
        json_file=arguments.json,
        jobs=arguments.jobs,
        options=options,
        limit_s=arguments.time_limit,
    )
    goals = [
        Goal(
            "all caps met, every check passed",
            f"{len(rows)} of {len(rows)}",
            str(sum(row["status"] == "pruned" for row in rows)),
            all(row["status"] == "pruned" for row in rows),
        )
    ]
    print_report(rows, _table(rows), goals)
    return 0 if all(goal.reached for goal in goals) else 1


def _table(rows: Sequence[Row]) -> Table:
    caps = next((row["constraints"] for row in rows if "constraints" in row), [])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("network", no_wrap=True)
    for cap in caps:
        table.add_column(f"{_name(cap)}\nof its cap", justify="right")
    for heading in ("all met", "masked reference", "exact count"):
        table.add_column(heading, justify="center")
    table.add_column("prune", justify="right")
    for row in rows:
        found = row.get("constraints")
        used = [_share(cap) for cap in found] if found else [""] * len(caps)
        met = passed(all(cap["met"] for cap in found) if found else False)
        table.add_row(
            row["name"],
            *used,
            met,
            passed(row.get("verified")),
            passed(row.get("macs_exact")),
            seconds(row.get("prune_s")),
        )
    return table


def _share(cap: Row) -> Text:
    share = cap["value"] / cap["limit"]
    return Text(percent(share, 2), style="bold" if share > 0.99 else "")


def _name(cap: Row) -> str:
    return cap["kind"] if cap["metric"] == "memory" else cap["metric"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--budget", default=BUDGET)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
