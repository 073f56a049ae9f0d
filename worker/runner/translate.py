"""Contract types become the engine's: the one place that knows both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.budget import Budget, Cap
from core.engine import CompressionRequest
from core.recovery import Conversion
from store import contract


def compression_request(
    options: contract.JobOptions,
    *,
    model_path: Path,
    architecture: str | None,
    architecture_args: Mapping[str, Any],
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None,
    dataset_path: Path | None,
    normalization: contract.Normalization | None,
    scale: float | None,
    convert: contract.Conversion | None,
    request_sha256: str | None = None,
) -> CompressionRequest:
    """What a job asks of the engine."""
    return CompressionRequest(
        model_path=model_path,
        architecture=architecture,
        architecture_args=dict(architecture_args),
        input_shape=input_shape,
        budget=budget(options.budget),
        methods=tuple(method.model_dump() for method in options.methods),
        dataset_path=dataset_path,
        normalization=statistics(normalization),
        scale=scale,
        conversion=conversion(convert),
        recovery=options.recovery.model_dump(exclude_none=True),
        encoding=encoding(options.encoding),
        outputs=tuple(options.outputs),
        onnx_opset=options.onnx.opset if options.onnx else None,
        device=options.device,
        seed=options.seed,
        on_unmet=options.on_unmet,
        max_accuracy_drop=options.accuracy.max_drop if options.accuracy else None,
        request_sha256=request_sha256,
        plan=options.plan.model_dump() if options.plan else None,
    )


def encoding(asked: contract.Encoding) -> dict[str, Any]:
    return {**asked.model_dump(exclude={"bits"}), "levels": asked.shared_values}


def budget(asked: contract.Budget) -> Budget:
    caps = [
        Cap(metric=name, maximum=cap.max, max_ratio=cap.max_ratio, kind=getattr(cap, "kind", None))
        for name in type(asked).model_fields
        if (cap := getattr(asked, name)) is not None
    ]
    return Budget(tuple(caps))


def statistics(normalization: contract.Normalization | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Per-channel mean and standard deviation."""
    return (tuple(normalization.mean), tuple(normalization.std)) if normalization else None


def conversion(convert: contract.Conversion | None) -> Conversion | None:
    return Conversion(convert.size and tuple(convert.size), convert.color) if convert else None
