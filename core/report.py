"""The result of a run as one JSON object: what `report.json` holds and what the job resource shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from core.analysis import Frozen, LayerCost, Profile, profile
from core.budget import Constraint, Costs
from core.choice import Choice
from core.deliver import Delivery
from core.deliver.latency import Latency
from core.deliver.notices import of_speed
from core.encoding.encode import Encoded
from core.network import Network
from core.planning import Plan
from core.recovery import Recovered
from core.surgery import Equivalence
from core.version import VERSION

# Operators whose channels are the last axis of their output; elsewhere they are the first after the batch.
_CHANNELS_LAST = frozenset({"linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "layer_norm", "rms_norm"})


def compose_result(
    *,
    request: Mapping[str, Any],
    original: Network,
    compressed: Network,
    baseline: Profile,
    baseline_costs: Costs,
    measured: Costs,
    constraints: Sequence[Constraint],
    choice: Choice,
    folded: Sequence[str],
    equivalence: Equivalence,
    recovered: Recovered,
    sparse: Mapping[str, int] | None = None,
    encoded: Encoded,
    delivery: Delivery,
    original_latency: Latency | None,
    latency: Latency | None,
    device: str,
    input_sha256: str,
    seconds: float,
) -> dict[str, Any]:
    """The `result` object of API.md. Costs are measured on the delivered network, never the plan's prediction.

    baseline_costs, measured: with the bytes of the files, and the latency where it is capped. sparse: counts by
    nonzeros, where a method makes them.
    """
    met = [constraint.as_dict(measured) for constraint in constraints]
    plan = choice.plan
    layers = layer_rows(baseline, profile(compressed), plan)
    widths = {row["name"]: (row["before"]["out"], row["after"]["out"]) for row in layers}
    return {
        "met": all(constraint["met"] for constraint in met),
        "constraints": met,
        "baseline": _costs(baseline_costs, recovered.accuracy_original, original_latency),
        "compressed": _costs(measured, encoded.accuracy_after, latency),
        "equivalence": {
            "max_relative_error": equivalence.max_relative_error,
            "passed": equivalence.passed,
            "checked": equivalence.checked,
            "insensitive": list(equivalence.insensitive),
            "unproven": list(equivalence.unproven),
        },
        "sparse": dict(sparse) if sparse is not None else None,
        "layers": layers,
        "frozen": frozen_rows(choice.analysis.frozen),
        "faults": list(choice.analysis.faults),
        "folded": list(folded),
        "survivors": bool(choice.changed),
        "changed": frozen_rows(choice.changed),
        "plan": {"note": choice.note, "binding": plan.binding.metric if plan.binding else None},
        "recovery": dict(recovered.details),
        "encoding": encoded.details,
        "int8": delivery.int8,
        "artifacts": delivery.artifacts(),
        "notices": [*delivery.notices, *of_speed(original_latency, latency, widths)],
        "provenance": {
            "version": VERSION,
            "torch": torch.__version__,
            "device": device,
            "threads": torch.get_num_threads(),
            "seed": request["seed"],
            "architecture": original.architecture,
            "architecture_args": dict(original.architecture_args),
            "input_shape": {spec.name: list(spec.shape) for spec in original.inputs},
            "methods": [dict(method) for method in request["methods"]],
            "plan_given": request["plan"] is not None,
            "input_sha256": input_sha256,
            "request_sha256": request["request_sha256"],
            "seconds": round(seconds, 3),
        },
    }


def layer_rows(before: Profile, after: Profile, plan: Plan) -> list[dict[str, Any]]:
    """Per layer with parameters, in execution order: output width, parameters and MACs, before and after.

    Where the plan names a layer, its width is the one that a plan may change.
    """
    kept, planned = _by_name(after.layers), {layer.name: layer for layer in plan.layers}
    rows = []
    for name, calls in _by_name(before.layers).items():
        row = _row(calls)
        if row["params"]:
            # A layer that only standardised a weight is gone once that weight is folded.
            gone = {"out": row["out"], "params": 0, "macs": 0}
            left = _row(kept[name]) if name in kept else gone
            if name in planned:
                row["out"], left["out"] = planned[name].before, planned[name].after
            rows.append({"name": name, "type": _main(calls).type, "before": row, "after": left})
    return rows


def frozen_rows(frozen: Iterable[Frozen]) -> list[dict[str, str]]:
    return [{"layer": one.layer, "operator": one.operator, "reason": one.reason} for one in frozen]


def _by_name(layers: Iterable[LayerCost]) -> dict[str, list[LayerCost]]:
    """The calls of each layer: a module that is called twice is one layer."""
    found: dict[str, list[LayerCost]] = {}
    for layer in layers:
        found.setdefault(layer.name, []).append(layer)
    return found


def _row(calls: Sequence[LayerCost]) -> dict[str, int]:
    return {
        "out": _width(_main(calls)),
        "params": sum(call.params for call in calls),
        "macs": sum(call.macs for call in calls),
    }


def _main(calls: Sequence[LayerCost]) -> LayerCost:
    """The call that a layer is known by: the first that multiplies, else the first."""
    return next((call for call in calls if call.macs), calls[0])


def _width(call: LayerCost) -> int:
    shape = call.output_shape
    if not shape:
        return 1
    if call.type in _CHANNELS_LAST:
        return shape[-1]
    # A scale lies along the axis of its own length, wherever the network has its channels; a batch-norm has two numbers
    # per channel, which may happen to be as many as the pixels of a row.
    scale = not call.macs and "batch_norm" not in call.type and call.params in shape
    return call.params if scale else shape[0]


def _costs(costs: Costs, accuracy: float | None, latency: Latency | None) -> dict[str, Any]:
    return {
        **costs.as_dict(),
        "accuracy": accuracy,
        "latency_ms": latency.as_dict() if latency is not None else None,
    }
