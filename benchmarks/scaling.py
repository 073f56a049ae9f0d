"""How planning grows with the network: time of analysis and plan against the number of graph nodes.

    python -m benchmarks.scaling [NAME …] [--repeats 3] [--json FILE]

The exponent is the slope of a straight line through log time over log nodes (least squares); 1 is linear. Folding and
scores are left out: they read the weights, so they grow with the parameters and not with the graph.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from benchmarks.zoo import Row, export
from benchmarks.zoo_table import Goal, console, goal_table
from core.analysis import analyse
from core.analysis.folding import fold_statistics
from core.budget import Budget, Cap
from core.methods import get_method
from core.network import Network
from core.planning import plan_widths

NAMES = [
    "torchvision:squeezenet1_1",
    "torchvision:vgg16_bn",
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:resnet50",
    "torchvision:googlenet",
    "torchvision:regnet_y_8gf",
    "torchvision:efficientnet_b0",
    "torchvision:densenet121",
    "torchvision:resnet152",
    "torchvision:densenet201",
    "torchvision:efficientnet_b7",
    "timm:hrnet_w18_small",
    "timm:hrnet_w64",
]
MOST = 1.2


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.names or NAMES:
        rows.append(_measure(name, export(name, seed=0), arguments.repeats))
        console.print(f"{name}: {rows[-1]['nodes']} nodes, {1e3 * _seconds(rows[-1]):.0f} ms", markup=False)
    rows.sort(key=lambda row: row["nodes"])
    exponent = _exponent(rows)
    console.print(_table(rows))
    console.print()
    console.print(goal_table([Goal("exponent of time over nodes", f"≤ {MOST}", f"{exponent:.2f}", exponent <= MOST)]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"exponent": exponent, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0 if exponent <= MOST else 1


def _measure(name: str, network: Network, repeats: int) -> Row:
    """The fastest of `repeats`: what is slower was something else that the machine did."""
    folded = fold_statistics(network).network
    method = get_method("magnitude")
    config = method.config({})
    row: Row = {"name": name, "nodes": len(folded.graph.nodes), "analyse_s": float("inf"), "plan_s": float("inf")}
    for _ in range(repeats):
        started = time.perf_counter()
        analysis = analyse(folded)
        row["analyse_s"] = min(row["analyse_s"], time.perf_counter() - started)
        scores = method.scores(folded, analysis, config, 0)
        constraints = Budget((Cap("macs", max_ratio=0.5),)).constraints(analysis.costs(analysis.full_widths))
        started = time.perf_counter()
        plan_widths(analysis, scores, constraints, method.plan_options(config))
        row["plan_s"] = min(row["plan_s"], time.perf_counter() - started)
    return row | {"groups": len(analysis.groups), "channels": int(analysis.components)}


def _seconds(row: Row) -> float:
    return row["analyse_s"] + row["plan_s"]


def _exponent(rows: Sequence[Row]) -> float:
    nodes, times = (np.log([value(row) for row in rows]) for value in (lambda row: row["nodes"], _seconds))
    return float(np.polyfit(nodes, times, 1)[0])


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("network", no_wrap=True)
    for heading in ("nodes", "groups", "channels", "analyse", "plan", "µs per node"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['nodes']:,}",
            str(row["groups"]),
            f"{row['channels']:,}",
            f"{1e3 * row['analyse_s']:.0f} ms",
            f"{1e3 * row['plan_s']:.0f} ms",
            f"{1e6 * _seconds(row) / row['nodes']:.0f}",
        )
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
