"""One network of the sweep, from export to reload, every stage timed apart.

    python -m benchmarks.zoo_model ROW_FILE NAME [--budget macs=0.5] [--round-to 8] [--image-size 64] [--seed 0]
                                   [--no-verify] [--no-deliver] [--latency]

The row is written to ROW_FILE as JSON after every stage, so that whoever waits for it knows how far it came.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.zoo import Row, build_network, parse_budget, write_row
from core.analysis import ChannelAnalysis, analyse
from core.analysis.folding import fold_statistics
from core.budget import Budget
from core.deliver.artifacts import write_safetensors
from core.deliver.latency import measure_latencies
from core.deliver.model_py import write_model_py
from core.deliver.onnx_file import write_onnx
from core.errors import EngineError
from core.methods import get_method
from core.network import Network
from core.planning import Plan, plan_widths
from core.surgery import apply, verify

PRUNING_STAGES = ("fold_s", "analyse_s", "score_s", "plan_s", "apply_s")
RELOAD_TOLERANCE = 1e-5
LEVELS = {"strict": analyse, "survivors": functools.partial(analyse, survivors=True)}

# Run in the delivered folder by an isolated interpreter: nothing of this checkout can be imported there.
_RELOAD = """
import importlib.util, torch
spec = importlib.util.spec_from_file_location("model", "model.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
inputs = torch.load("inputs.pt", weights_only=True)
with torch.no_grad():
    outputs = module.load("model.safetensors")(*inputs)
torch.save(outputs if isinstance(outputs, tuple) else (outputs,), "outputs.pt")
"""


def measure(
    name: str,
    *,
    budget: str = "macs=0.5",
    seed: int = 0,
    round_to: int = 1,
    image_size: int | None = None,
    verifies: bool = True,
    delivers: bool = True,
    latency: bool = False,
    tell: Callable[[Row], None] = lambda row: None,
) -> Row:
    """Everything that is measured of one network. `status`: pruned (every check passed), failed or refused."""
    row: Row = {"name": name, "budget": budget, "round_to": round_to, "image_size": image_size, "seed": seed}
    clock = _Clock(row, tell)
    try:
        with clock.stage("build"):
            module, shape = build_network(name, seed=seed, image_size=image_size)
        with clock.stage("export"):
            network = Network.from_module(module, {"input": shape}, architecture=name)
        row |= {"input": list(network.inputs[0].shape), "nodes": len(network.graph.nodes)}
        pruned, plan, analysis, folded = _prune(network, parse_budget(budget), round_to, row, clock)
        _count(row, network, pruned, plan, clock)
        if verifies:
            with clock.stage("verify"):
                equivalence = verify(folded, analysis, plan.keep, pruned, seed=seed)
            row |= {
                "verified": equivalence.passed,
                "verify_error": equivalence.max_relative_error,
                "insensitive": len(equivalence.insensitive),
                "problem": equivalence.problem or (None if equivalence.passed else f"at {equivalence.worst}"),
            }
        if delivers:
            _deliver(row, network, pruned, clock, latency=latency)
        row["status"] = "pruned" if _all_passed(row) else "failed"
    except EngineError as error:
        refusal = error.code in ("target_infeasible", "invalid_model")
        row |= {"status": "refused" if refusal else "failed", "error": f"{error.code}: {error.message}"}
    except Exception as error:  # a row of the table, whatever it is
        row |= {"status": "failed", "error": f"{type(error).__name__}: {error}"[:500]}
    tell(row)
    return row


def prune(network: Network, budget: str, *, seed: int = 0, round_to: int = 1) -> Row:
    """Only the surgery: costs before and after, and the masked reference. `status` as in `measure`."""
    row: Row = {"seed": seed}
    try:
        pruned, plan, analysis, folded = _prune(
            network, parse_budget(budget), round_to, row, _Clock(row, lambda unfinished: None)
        )
    except EngineError as error:
        return row | {"status": "refused", "error": f"{error.code}: {error.message}"}
    equivalence = verify(folded, analysis, plan.keep, pruned, seed=seed)
    row |= {"verified": equivalence.passed, "verify_error": equivalence.max_relative_error}
    return row | {"status": "pruned" if _all_passed(row) else "failed"}


def _prune(
    network: Network, budget: Budget, round_to: int, row: Row, clock: _Clock
) -> tuple[Network, Plan, ChannelAnalysis, Network]:
    """Strict rules first; where they cannot reach the budget, statistics over the surviving channels."""
    with clock.stage("fold"):
        folded = fold_statistics(network)
    row["folded"] = len(folded.layers)
    method = get_method("magnitude")
    config = method.config({"round_to": round_to})
    for level, analysed in LEVELS.items():
        with clock.stage("analyse"):
            analysis = analysed(folded.network)
        row |= {"level": level, "faults": len(analysis.faults)}
        with clock.stage("score"):
            scores = method.scores(folded.network, analysis, config, row["seed"])
        constraints = budget.constraints(analysis.costs(analysis.full_widths))
        try:
            with clock.stage("plan"):
                plan = plan_widths(analysis, scores, constraints, method.plan_options(config))
            break
        except EngineError as error:
            if error.code != "target_infeasible" or level == "survivors":
                _tell_refusal(row, analysis)
                raise
    with clock.stage("apply"):
        pruned = apply(folded.network, analysis, plan.keep)
    baseline = analysis.costs(analysis.full_widths)
    binding = max(plan.constraints, key=lambda cap: cap.value(plan.predicted) / max(1, cap.limit))
    narrow = [layer for layer in plan.layers if layer.after <= 2 < layer.before]
    row |= {
        "prune_s": round(sum(row[stage] for stage in PRUNING_STAGES), 4),
        "before": baseline.as_dict(),
        "after": plan.predicted.as_dict(),
        "constraints": [cap.as_dict(plan.predicted) for cap in plan.constraints],
        "below": 1 - binding.value(plan.predicted) / max(1, binding.limit),
        "smallest_width": min((layer.after for layer in plan.layers if layer.before > 2), default=None),
        "narrow_layers": [layer.name for layer in narrow],
        "note": plan.note,
    }
    return pruned, plan, analysis, folded.network


def _tell_refusal(row: Row, analysis: ChannelAnalysis) -> None:
    row["refused_after_s"] = round(sum(row.get(stage, 0.0) for stage in PRUNING_STAGES), 3)
    row["frozen"] = [f"{one.layer} ({one.operator}): {one.reason}" for one in analysis.frozen[:5]]


def _count(row: Row, network: Network, pruned: Network, plan: Plan, clock: _Clock) -> None:
    """Run both and count: that the smaller one works is the first check, that the prediction was exact the second."""
    with clock.stage("forward"):
        counted = [_counted_macs(one) for one in (network, pruned)]
        outputs = pruned.run(*pruned.random_inputs(batch=3, seed=row["seed"]))
    predicted = [row["before"]["macs"], plan.predicted.macs]
    row |= {
        "forward": all(bool(output.isfinite().all()) for output in outputs),
        "counted_macs": counted,
        "macs_exact": counted == predicted,
    }


def _counted_macs(network: Network) -> int:
    with FlopCounterMode(display=False) as counter:
        network.run(*network.random_inputs(batch=1, seed=0))
    return counter.get_total_flops() // 2


def _deliver(row: Row, original: Network, pruned: Network, clock: _Clock, *, latency: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with clock.stage("onnx"), _noted(row, "onnx"):
            write_onnx(pruned, folder / "model.onnx")
        with clock.stage("reload"), _noted(row, "reload"):
            row["reload_error"] = _reload_error(pruned, folder)
            if not row["reload_error"] <= RELOAD_TOLERANCE:
                raise EngineError("internal", f"model.py differs by {row['reload_error']:.1e}")
        if latency and row["onnx"]:
            with clock.stage("latency"):
                write_onnx(original, folder / "original.onnx", compare=False)
                pair = [(folder / "original.onnx", original), (folder / "model.onnx", pruned)]
                row["latency_ms"] = [latency.p50 for latency in measure_latencies(pair)]


def _reload_error(network: Network, folder: Path) -> float:
    """Largest relative error of model.py with model.safetensors, in an interpreter that has torch and nothing of ours."""
    write_safetensors(network, folder / "model.safetensors", pruned=True)
    write_model_py(network, folder / "model.py")
    inputs = network.random_inputs(batch=3, seed=1)
    torch.save(inputs, folder / "inputs.pt")
    subprocess.run([sys.executable, "-I", "-c", _RELOAD], cwd=folder, check=True, capture_output=True, timeout=300)
    outputs = torch.load(folder / "outputs.pt", weights_only=True)
    pairs = zip(outputs, network.run(*inputs), strict=True)
    return max(float((got - want).norm() / want.norm().clamp_min(1e-12)) for got, want in pairs)


@contextmanager
def _noted(row: Row, key: str) -> Iterator[None]:
    """Whether the check passed, and why not; the stages after it run all the same."""
    row[key] = False
    try:
        yield
        row[key] = True
    except Exception as error:
        row[f"{key}_problem"] = f"{type(error).__name__}: {error}"[:500]


def _all_passed(row: Row) -> bool:
    """No check that was run has failed."""
    checks = ("forward", "verified", "onnx", "reload")
    met = all(constraint["met"] for constraint in row["constraints"])
    return met and all(row.get(check, True) for check in checks)


class _Clock:
    """Seconds per stage, in the row; a stage that runs twice counts twice."""

    def __init__(self, row: Row, tell: Callable[[Row], None]) -> None:
        self._row = row
        self._tell = tell

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._row["stage"] = name
        self._tell(self._row)
        started = time.perf_counter()
        try:
            yield
        finally:
            key = f"{name}_s"
            self._row[key] = round(self._row.get(key, 0.0) + time.perf_counter() - started, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row_file", type=Path)
    parser.add_argument("name")
    parser.add_argument("--budget", default="macs=0.5")
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--no-deliver", action="store_true")
    parser.add_argument("--latency", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    measure(
        arguments.name,
        budget=arguments.budget,
        seed=arguments.seed,
        round_to=arguments.round_to,
        image_size=arguments.image_size,
        verifies=not arguments.no_verify,
        delivers=not arguments.no_deliver,
        latency=arguments.latency,
        tell=lambda row: write_row(arguments.row_file, row),
    )


if __name__ == "__main__":
    main()
