"""How many multiply-accumulates the closed-form fits of a reduction take, so that who offers them can bound them."""

from __future__ import annotations

from core.analysis import profile
from core.network import Network
from core.penni.sites import sites
from core.recovery.least_squares import most_rows

# Ridge problems of one layer in one pass, about: two strengths, tried and then solved on all images.
_SOLVES = 6


def fitting_macs(network: Network, examples: int, steps: int) -> int:
    """Of a whole reduction fitted to `examples` images and pruned in so many steps: both networks run in every pass, and
    every layer is solved."""
    forward = 2 * examples * profile(network).costs.macs
    layers = 0
    for site in sites(network, pointwise=True):
        width = site.pieces * site.taps + 1
        rows = min(examples * site.positions, most_rows(width))
        layers += rows * width * (width + site.outputs) + _SOLVES * width**3 // 3
    return (1 + steps) * (forward + layers)
