"""A cut: a plan applied to a network, and proven against the masked reference, or no network at all."""

from __future__ import annotations

from dataclasses import dataclass

from core.choice import Choice
from core.errors import EngineError
from core.network import Network
from core.recovery.recalibration import Kept
from core.surgery import Equivalence, apply, kept_indices, verify


@dataclass(frozen=True, eq=False)
class Cut:
    """choice: of channels of `network`. pruned: what is left of it."""

    network: Network
    choice: Choice
    pruned: Network

    @staticmethod
    def of(network: Network, choice: Choice) -> Cut:
        return Cut(network, choice, apply(network, choice.analysis, choice.plan.keep))

    @property
    def kept(self) -> Kept:
        """What is left of the network's tensors."""
        return kept_indices(self.choice.analysis, self.choice.plan.keep)

    def proven(self, seed: int) -> Equivalence:
        """Raise EngineError("equivalence_failed") where `pruned` is not `network` without the channels of `choice`."""
        found = verify(self.network, self.choice.analysis, self.choice.plan.keep, self.pruned, seed=seed)
        if found.passed:
            return found
        raise EngineError(
            "equivalence_failed",
            f"The pruned network does not agree with its masked reference ({found.reason}), so it is not delivered. "
            "This is a fault of the service, not of the checkpoint; please report it with the model's architecture.",
            details={"layer": found.worst, "problem": found.problem, "insensitive": list(found.insensitive)},
        )
