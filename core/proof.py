"""A cut that is proven: the pruned network against its masked reference, or no network at all."""

from __future__ import annotations

from core.choice import Choice
from core.errors import EngineError
from core.network import Network
from core.surgery import Equivalence, verify


def proven(network: Network, choice: Choice, pruned: Network, seed: int) -> Equivalence:
    """Raise EngineError("equivalence_failed") where `pruned` is not `network` without the channels of `choice`."""
    found = verify(network, choice.analysis, choice.plan.keep, pruned, seed=seed)
    if found.passed:
        return found
    said = found.problem
    if said is None:
        said = f"relative error {found.max_relative_error:.1e} at {found.worst}"
    raise EngineError(
        "equivalence_failed",
        f"The pruned network does not agree with its masked reference ({said}), so it is not delivered. This is a fault of "
        "the service, not of the checkpoint; please report it with the model's architecture.",
        details={"layer": found.worst, "problem": found.problem, "insensitive": list(found.insensitive)},
    )
