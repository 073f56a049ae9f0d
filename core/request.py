"""The request: everything that decides the outcome of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.budget import Budget
from core.errors import EngineError
from core.recovery.encoded_images import Conversion


@dataclass(frozen=True)
class CompressionRequest:
    """One checkpoint, its budget, and how to get there.

    methods: one mapping, with its `type`, or a chain of two (`core.chain`). plan: `{"layers": [{"name", "out"}, …]}`,
    widths that the planner takes as they are. recovery, encoding: keyword arguments of `RecoveryConfig` and
    `EncodingOptions`. max_accuracy_drop: largest allowed loss of accuracy, as a fraction; needs a labelled dataset.
    onnx_opset: of model.onnx; None for the default.
    """

    model_path: Path
    budget: Budget
    architecture: str | None = None
    architecture_args: Mapping[str, Any] = field(default_factory=dict)
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    methods: tuple[Mapping[str, Any], ...] = ({"type": "auto"},)
    plan: Mapping[str, Any] | None = None
    dataset_path: Path | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    scale: float | None = None
    conversion: Conversion | None = None
    recovery: Mapping[str, Any] = field(default_factory=dict)
    encoding: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("onnx", "safetensors", "report")
    onnx_opset: int | None = None
    device: Literal["auto", "cpu", "gpu"] = "auto"
    seed: int = 0
    on_unmet: Literal["fail", "best_effort"] = "fail"
    max_accuracy_drop: float | None = None
    request_sha256: str | None = None

    def __post_init__(self) -> None:
        if len(self.methods) not in (1, 2):
            raise EngineError(
                "invalid_request",
                f"methods holds {len(self.methods)} entries; a run takes one, or a chain of two. Run the others after "
                "it.",
                param="/methods",
            )
