"""One compression under way: what every stage of it works with, and what a way to a smaller network makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from core.checkpoint import Checkpoint
from core.choice import Choice
from core.network import Network
from core.origin import Origin
from core.progress import Stages
from core.recovery import ImageDataset, Recovered, RecoveryConfig, recover
from core.recovery.recalibration import Kept
from core.request import CompressionRequest
from core.surgery import Equivalence


@dataclass(frozen=True, eq=False)
class Run:
    """dataset: None without images. recovery: what the request says of it."""

    request: CompressionRequest
    origin: Origin
    dataset: ImageDataset | None
    device: torch.device
    recovery: RecoveryConfig
    stages: Stages
    checkpoint: Checkpoint

    def recovered(self, network: Network, kept: Kept, step: str) -> Recovered:
        """`network` recovered. kept: what it has left of the original's tensors. step: its name in the checkpoint."""
        return recover(
            network,
            self.origin.network,
            self.dataset,
            self.recovery,
            kept=kept,
            seed=self.request.seed,
            device=self.device,
            progress=self.stages.listener,
            checkpoint=self.checkpoint,
            step=step,
        )


@dataclass(frozen=True)
class Made:
    """One network within the caps, verified and recovered, in the form that is delivered.

    sparse: its counts by nonzeros, where kernels are shared.
    """

    choice: Choice
    equivalence: Equivalence
    recovered: Recovered
    sparse: Mapping[str, int] | None = None
