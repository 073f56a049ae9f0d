"""Agreement: counts of one network by different means must be equal, and folding must change no function.

The channel analysis predicts what a network costs; a budget that is kept by a wrong count is not kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.budget import Costs
from core.errors import EngineError
from core.measure import independent_costs
from core.network import Network

# Relative, for float32 weights that were computed in float64; a fault is orders of magnitude larger.
_FOLDING_TOLERANCE = 1e-4


def require_agreement(network: Network, expected: Costs, what: str) -> Costs:
    """The costs of `network`, counted by other means than the analysis. Raises EngineError where they are not
    `expected`."""
    counted = independent_costs(network)
    require_equal(counted, expected, what)
    return counted


def require_equal(counted: Costs, expected: Costs, what: str) -> None:
    """Raise EngineError where two counts differ; `what` says whose count `expected` is."""
    if counted != expected.counted:
        raise EngineError(
            "internal",
            f"{what} says {expected.counted.as_dict()} and another count says {counted.as_dict()}; nothing is delivered.",
        )


def require_same_function(upload: Network, folded: Network, layers: Sequence[str], seed: int) -> None:
    """Raise EngineError where folding the weights of `layers` changed what the network computes."""
    if not layers:
        return
    inputs = upload.random_inputs(batch=2, seed=seed, dtype=torch.float64)
    wanted, found = (network.to(torch.float64).run(*inputs) for network in (upload, folded))
    for one, other in zip(wanted, found, strict=True):
        error = relative_error(one, other)
        if not error <= _FOLDING_TOLERANCE:
            raise EngineError(
                "internal", f"Folding the weights of {', '.join(layers[:3])} changes an output by {error:.1e}."
            )


def relative_error(wanted: Tensor, found: Tensor) -> float:
    """In float64, of what is `wanted`."""
    wanted, found = wanted.double(), found.double()
    return float((wanted - found).norm() / wanted.norm().clamp_min(1e-30))
