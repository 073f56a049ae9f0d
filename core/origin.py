"""The origin: what is compressed, and what it costs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from core.analysis import Profile, profile
from core.analysis.folding import fold_statistics
from core.budget import Costs
from core.deliver.latency import Latency
from core.intake import load_network
from core.latency import exported_latency
from core.network import Network
from core.planning import safetensors_bytes
from core.progress import Stages
from core.request import CompressionRequest


@dataclass(frozen=True, eq=False)
class Origin:
    """What is compressed. upload: as it came; network: the same with folded weights, which is what gets cut.

    costs: of the upload, the baseline of every ratio. latency: of the upload, where it is capped.
    """

    upload: Network
    network: Network
    folded: tuple[str, ...]
    profile: Profile
    costs: Costs
    latency: Latency | None


def load_origin(request: CompressionRequest, stages: Stages) -> Origin:
    """Read and profile the upload. The latency is measured only where it is capped. Raises EngineError."""
    with stages.run("intake"):
        upload = load_network(
            request.model_path,
            architecture=request.architecture,
            architecture_args=request.architecture_args,
            input_shape=request.input_shape,
        )
    with stages.run("profile"):
        found = profile(upload)
        folded = fold_statistics(upload)
        latency = exported_latency(upload) if request.budget.has("latency_ms") else None
        costs = dataclasses.replace(
            found.costs, size_bytes=safetensors_bytes(upload), latency_ms=latency.p50 if latency else None
        )
    return Origin(upload, folded.network, folded.layers, found, costs, latency)
