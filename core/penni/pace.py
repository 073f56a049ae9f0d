"""The pace of pruning: in how many steps, with a fit after each, and what every step leaves.

A fit makes up for what one step took as long as that is little of what there was, so every step takes the same share and
there are more steps the less is to be left.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from core.budget import Constraint, Costs

# The least that one step leaves of a count, within so many steps.
_LEFT_PER_STEP = 0.8
_FEWEST, _MOST = 3, 6


def steps_onto(limits: Iterable[tuple[Constraint, Costs]]) -> int:
    """How many steps lead onto caps, each with the costs from which it starts."""
    left = min((cap.limit / max(cap.limit, cap.value(costs)) for cap, costs in limits), default=1.0)
    wanted = math.ceil(math.log(max(left, _LEFT_PER_STEP**_MOST)) / math.log(_LEFT_PER_STEP))
    return min(_MOST, max(_FEWEST, wanted))
