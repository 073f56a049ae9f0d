"""What a network costs, and what it may cost.

MACs count multiply-accumulates of convolutions and matrix products; FLOPs = 2 × MACs. Bytes are float32 bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from core.errors import EngineError

Metric = Literal["params", "macs", "flops", "memory", "size", "latency_ms"]
MemoryKind = Literal["weights", "activations", "total"]


@dataclass(frozen=True)
class Costs:
    """Exact costs of one network at batch 1.

    params: elements of trainable parameters. macs: multiply-accumulates of one forward pass. weight_bytes: float32
    bytes of parameters and floating-point buffers. peak_activation_bytes: peak of live buffers (DESIGN, buffer model).
    size_bytes: of model.safetensors, header and tensors. latency_ms: median run of the exported network (ONNX Runtime on
    the CPU, one thread). The last two are None where nobody asked for them.
    """

    params: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int
    size_bytes: int | None = None
    latency_ms: float | None = None

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def memory_bytes(self) -> int:
        return self.weight_bytes + self.peak_activation_bytes

    @property
    def counted(self) -> Costs:
        """What any count of the network itself yields: without its file and without the clock."""
        return replace(self, size_bytes=None, latency_ms=None)

    def value(self, metric: Metric, kind: MemoryKind | None = None) -> int | float:
        """The cost that a cap on `metric` (and `kind`, for memory; default total) limits. Raises where it is not known."""
        if metric == "memory":
            return {
                "weights": self.weight_bytes,
                "activations": self.peak_activation_bytes,
                "total": self.memory_bytes,
            }[kind or "total"]
        value = {
            "params": self.params,
            "macs": self.macs,
            "flops": self.flops,
            "size": self.size_bytes,
            "latency_ms": self.latency_ms,
        }[metric]
        if value is None:
            raise ValueError(f"{metric} of this network is not known")
        return value

    def as_dict(self) -> dict[str, int | float]:
        """JSON; figures that nobody asked for are left out."""
        found = {
            "params": self.params,
            "macs": self.macs,
            "flops": self.flops,
            "weight_bytes": self.weight_bytes,
            "peak_activation_bytes": self.peak_activation_bytes,
            "memory_bytes": self.memory_bytes,
            "size_bytes": self.size_bytes,
            "latency_ms": self.latency_ms,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Cap:
    """An upper limit on one metric: absolute (`maximum`) or relative to the original (`max_ratio`), exactly one."""

    metric: Metric
    maximum: float | None = None
    max_ratio: float | None = None
    kind: MemoryKind | None = None

    def __post_init__(self) -> None:
        if (self.maximum is None) == (self.max_ratio is None):
            raise ValueError(f"budget.{self.metric}: give either max or max_ratio, not both and not neither")
        if self.max_ratio is not None and not 0 < self.max_ratio < 1:
            raise ValueError(
                f"budget.{self.metric}.max_ratio must lie between 0 and 1 (exclusive), got {self.max_ratio}"
            )
        if self.maximum is not None and not (math.isfinite(self.maximum) and self.maximum > 0):
            raise ValueError(f"budget.{self.metric}.max must be a positive number, got {self.maximum}")

    def limit(self, baseline: Costs) -> int | float:
        """The cap as an absolute number: whole, floored so that meeting it is never a matter of rounding; milliseconds as they are."""
        limit = self.maximum
        if limit is None:
            limit = self.max_ratio * baseline.value(self.metric, self.kind)
        return limit if self.metric == "latency_ms" else math.floor(limit)


@dataclass(frozen=True)
class Constraint:
    """A cap made absolute against one baseline."""

    metric: Metric
    kind: MemoryKind | None
    limit: int | float

    @property
    def analytic(self) -> bool:
        """Whether planning can predict it; a latency can only be measured."""
        return self.metric != "latency_ms"

    def value(self, costs: Costs) -> int | float:
        return costs.value(self.metric, self.kind)

    def met_by(self, costs: Costs) -> bool:
        return self.value(costs) <= self.limit

    def on_the_way(self, costs: Costs, share: float) -> Constraint:
        """The cap this far on the way to it from what `costs` says, in equal ratios; at 1 the cap itself."""
        end = max(1, self.limit)
        start = max(end, self.value(costs))
        return self if share == 1 else replace(self, limit=max(self.limit, math.floor(start * (end / start) ** share)))

    def as_dict(self, costs: Costs) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "kind": (self.kind or "total") if self.metric == "memory" else None,
            "limit": self.limit,
            "value": self.value(costs),
            "met": self.met_by(costs),
        }


@dataclass(frozen=True)
class Budget:
    """All caps of one job; every one must hold."""

    caps: tuple[Cap, ...]

    def has(self, metric: Metric) -> bool:
        return any(cap.metric == metric for cap in self.caps)

    def __post_init__(self) -> None:
        if not self.caps:
            raise EngineError("invalid_request", "A budget needs at least one cap.", param="/budget")

    def constraints(self, baseline: Costs) -> tuple[Constraint, ...]:
        return tuple(Constraint(cap.metric, cap.kind, cap.limit(baseline)) for cap in self.caps)
