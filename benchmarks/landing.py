"""How close the planner lands to the binding cap, and how long it plans.

    python -m benchmarks.landing [--nets cifar_resnet20 cifar_resnet56] [--checkpoints FOLDER] [--ratios 0.3 0.4 0.5 0.7]
                                 [--budgets macs=0.5 flops=0.4+params=0.6 memory.activations=0.6] [--round-to 1 8] [--json FILE]

A net is an architecture's name (cifar_resnet20, torchvision:resnet50, timm:resnet50). A budget is a `+`-joined list of
metric[.kind]=ratio; without `--budgets`, every metric at every ratio and a few combinations are run. FOLDER may hold
trained weights, as `resnet20-cifar10.th` for cifar_resnet20; without it the weights are random (seed 0). The predicted
costs of every plan, and the bytes of its file under a cap on size, are checked against the pruned network. Exit code 1
if a cap is exceeded, a prediction is off, or a plan is over 1 % below its cap without naming the step that forbids
more.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from core.analysis import ChannelAnalysis, analyse, profile
from core.architectures import build, get_architecture
from core.budget import Budget, Cap, Costs
from core.deliver.artifacts import write_safetensors
from core.errors import EngineError
from core.intake import load_network
from core.methods import get_method
from core.network import Network
from core.planning import Plan, SizeTable, plan_widths, safetensors_bytes
from core.surgery import apply

METRICS = ("macs", "params", "memory.total", "memory.weights", "memory.activations", "size")
COMBINATIONS = ("flops=0.4+params=0.6", "macs=0.6+params=0.5", "macs=0.5+memory.activations=0.7", "macs=0.6+size=0.5")
REPEATS = 3


def main() -> int:
    arguments = _arguments()
    budgets = arguments.budgets or [f"{m}={r:g}" for m in METRICS for r in arguments.ratios] + list(COMBINATIONS)
    rows = []
    for name in arguments.nets:
        network = _network(name, arguments.checkpoints)
        analysis = analyse(network)
        baseline = replace(profile(network).costs, size_bytes=safetensors_bytes(network))
        for round_to in arguments.round_to:
            rows += [_landing(name, network, analysis, baseline, budget, round_to) for budget in budgets]
    _print(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(row["ok"] for row in rows) else 1


def _network(name: str, checkpoints: Path | None) -> Network:
    if checkpoints is not None:
        found = [path for path in sorted(checkpoints.iterdir()) if path.name.startswith(_file_stem(name))]
        if not found:
            raise SystemExit(f"{checkpoints} has no file that starts with {_file_stem(name)!r}")
        return load_network(found[0], architecture=name)
    torch.manual_seed(0)
    architecture = get_architecture(name)
    shape = architecture.input_shape(architecture.defaults())
    return Network.from_module(build(name, {}), {"input": shape}, architecture=name)


def _file_stem(name: str) -> str:
    return name.removeprefix("cifar_")


def _landing(
    name: str, network: Network, analysis: ChannelAnalysis, baseline: Costs, budget: str, round_to: int
) -> dict[str, Any]:
    method = get_method("magnitude")
    config = method.config({"round_to": round_to})
    constraints = Budget(tuple(_cap(part) for part in budget.split("+"))).constraints(baseline)
    scores = method.scores(network, analysis, config, 0)
    size = SizeTable.of(network, analysis) if "size" in budget else None
    row: dict[str, Any] = {"net": name, "budget": budget, "round_to": round_to}
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        try:
            plan: Plan | None = plan_widths(analysis, scores, constraints, method.plan_options(config), size=size)
            note = plan.note
        except EngineError as refusal:
            plan, note = None, refusal.message
        seconds.append(time.perf_counter() - started)
    row |= {"plan_ms": round(1e3 * min(seconds), 2), "note": note}
    if plan is None:
        return row | {"feasible": False, "below": None, "binding": None, "ok": True}
    pruned = apply(network, analysis, plan.keep)
    exact = profile(pruned).costs == plan.predicted.counted
    if size is not None:
        exact = exact and _written_bytes(pruned, whole=bool(plan.keep.all())) == plan.predicted.size_bytes
    within = all(constraint.met_by(plan.predicted) for constraint in constraints)
    below, binding = None, None
    if plan.binding is not None:
        below = 1 - plan.binding.value(plan.predicted) / plan.binding.limit
        binding = plan.binding.as_dict(plan.predicted)
    explained = below is None or below <= 0.01 or "steps that are larger" in plan.note
    return row | {
        "feasible": True,
        "below": below,
        "binding": binding,
        "exact": exact,
        "ok": exact and within and explained,
    }


def _written_bytes(network: Network, *, whole: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_safetensors(network, path, pruned=not whole)
        return path.stat().st_size


def _cap(text: str) -> Cap:
    metric, _, ratio = text.partition("=")
    metric, _, kind = metric.partition(".")
    return Cap(metric, max_ratio=float(ratio), kind=kind or None)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("net", "round", "budget", "binding", "value", "limit", "below cap", "plan", "")
    for row in rows:
        binding = row["binding"] or {"metric": "none" if row["feasible"] else "infeasible", "kind": None}
        table.add_row(
            row["net"],
            str(row["round_to"]),
            row["budget"],
            ".".join(filter(None, (binding["metric"], binding["kind"]))),
            f"{binding['value']:,}" if "value" in binding else "",
            f"{binding['limit']:,}" if "limit" in binding else "",
            f"{row['below']:.3%}" if row["below"] is not None else "",
            f"{row['plan_ms']:.1f} ms",
            "" if row["ok"] else "WRONG",
        )
    console = Console(highlight=False, width=150)
    console.print(table)
    landed = sorted(row["below"] for row in rows if row["below"] is not None)
    if landed:
        median = landed[len(landed) // 2]
        over = sum(below > 0.01 for below in landed)
        console.print(
            f"{len(landed)} plans: median {median:.3%} below the cap, worst {landed[-1]:.3%}, {over} over 1 %"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["cifar_resnet20", "cifar_resnet56"])
    parser.add_argument("--checkpoints", type=Path, help="folder with trained weights")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.3, 0.4, 0.5, 0.7])
    parser.add_argument("--budgets", nargs="+", help="e.g. macs=0.5 flops=0.4+params=0.6")
    parser.add_argument("--round-to", nargs="+", type=int, default=[1])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
