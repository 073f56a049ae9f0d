"""How many shared kernels a layer starts with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from core.errors import EngineError
from core.penni.decomposition import kernels_for_energy
from core.penni.sites import Site

# Of a kernel's taps: 5 shared kernels for 3×3, and the next steps where the caps leave room for more.
FIRST_SHARE = 5 / 9
_SHARES = (FIRST_SHARE, 6 / 9, 7 / 9, 8 / 9, 1.0)


@dataclass(frozen=True)
class Bases:
    """A number, the fewest that hold an `energy`, or enough for the caps. layers: numbers of single layers, by name."""

    count: int | None = None
    energy: float | None = None
    layers: Mapping[str, int] = field(default_factory=dict)

    def shares(self, *, whole: bool) -> tuple[float, ...]:
        """Shares of the taps to try, the fewest first. whole: nothing is to be had by truncating."""
        if self.count is not None or self.energy is not None:
            return (1.0,)
        return (1.0,) if whole else _SHARES

    def kernels(self, site: Site, weight: Tensor, share: float) -> int:
        """Of one layer; `share` is used where nothing says a number."""
        most = min(site.taps, site.outputs * site.inputs)
        wanted = self.layers.get(site.path, self.count)
        if wanted is not None:
            return min(most, wanted)
        if self.energy is not None:
            return kernels_for_energy(weight, self.energy)
        return max(1, min(most, math.ceil(site.taps * share - 1e-9)))

    def check(self, sites: Iterable[Site]) -> None:
        """Raise EngineError for a layer that the network has not, or that has no kernels to share."""
        known = [site.path for site in sites]
        for name in self.layers:
            if name not in known:
                raise EngineError(
                    "invalid_request",
                    f"Method option 'bases': {name!r} is no convolution whose kernels are shared; these are: "
                    f"{', '.join(known)}.",
                    param="/methods/0/bases",
                )
