"""The result of a run as one JSON object: what `report.json` holds and what the job resource shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from core.analysis import ChannelAnalysis, Profile, profile
from core.budget import Constraint, Costs
from core.deliver import Delivery
from core.network import Network
from core.planning import Plan
from core.recovery import Recovered
from core.surgery import Equivalence
from core.version import VERSION


def compose_result(
    *,
    request: Mapping[str, Any],
    original: Network,
    compressed: Network,
    baseline: Profile,
    measured: Costs,
    constraints: Sequence[Constraint],
    analysis: ChannelAnalysis,
    plan: Plan,
    equivalence: Equivalence,
    recovered: Recovered,
    delivery: Delivery,
    device: str,
    input_sha256: str,
    seconds: float,
) -> dict[str, Any]:
    """The `result` object of API.md. Costs are measured on the delivered network, never the plan's prediction."""
    after = profile(compressed)
    met = [constraint.as_dict(measured) for constraint in constraints]
    return {
        "met": all(constraint["met"] for constraint in met),
        "constraints": met,
        "baseline": _costs(
            baseline.costs, delivery.original_size_bytes, recovered.accuracy_original, delivery.original_latency
        ),
        "compressed": _costs(measured, delivery.size_bytes, recovered.accuracy_after, delivery.latency),
        "equivalence": {
            "max_relative_error": equivalence.max_relative_error,
            "passed": equivalence.passed,
            "checked": equivalence.checked,
            "insensitive": list(equivalence.insensitive),
        },
        "sparse": None,
        "layers": _layers(baseline, after, original, compressed),
        "frozen": [
            {"layer": frozen.layer, "operator": frozen.operator, "reason": frozen.reason} for frozen in analysis.frozen
        ],
        "faults": list(analysis.faults),
        "plan": {"note": plan.note, "binding": plan.binding.metric if plan.binding else None},
        "recovery": dict(recovered.details),
        "artifacts": delivery.artifacts(),
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
            "input_sha256": input_sha256,
            "request_sha256": request["request_sha256"],
            "seconds": round(seconds, 3),
        },
    }


def _costs(costs: Costs, size_bytes: int, accuracy: float | None, latency: Any) -> dict[str, Any]:
    return {
        **costs.as_dict(),
        "size_bytes": size_bytes,
        "accuracy": accuracy,
        "latency_ms": latency.as_dict() if latency is not None else None,
    }


def _layers(before: Profile, after: Profile, original: Network, compressed: Network) -> list[dict[str, Any]]:
    """Per parametric layer: output width, parameters and MACs, before and after."""
    kept = {layer.name: layer for layer in after.layers}
    rows = []
    for layer in before.layers:
        if layer.params == 0:
            continue
        rows.append(
            {
                "name": layer.name,
                "type": layer.type,
                "before": _row(layer, original),
                "after": _row(kept[layer.name], compressed),
            }
        )
    return rows


def _row(layer: Any, network: Network) -> dict[str, int]:
    weight = network.tensors.get(f"{layer.name}.weight")
    width = int(weight.shape[0]) if weight is not None else int(layer.output_shape[0])
    return {"out": width, "params": layer.params, "macs": layer.macs}
