"""How many threads train fastest on this CPU at this moment.

A step waits for its slowest thread, hundreds of times: where another process holds a core, two threads can be several times
slower than one. So before a training that is worth it, a few steps are timed with each count. How sums are split over
threads moves the last bits of the weights; the count is therefore reported, kept with a checkpoint, and can be fixed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

# A training of fewer multiply-accumulates is over before a choice has paid.
WORTH_MACS = 1e12
_ROUNDS = 3
_LONGEST_S = 20.0
# Fewer threads than were given must be faster by this much.
_MARGIN = 1.1


def fastest_threads(step: Callable[[], object]) -> tuple[int, dict[int, float]]:
    """The thread count to use, at most what torch uses now, and the best seconds of `step` with each that was tried."""
    given = torch.get_num_threads()
    counts = sorted({given, (given + 1) // 2, 1}, reverse=True)
    if len(counts) == 1:
        return given, {}
    best: dict[int, float] = {}
    began = time.monotonic()
    for turn in range(1 + _ROUNDS):
        for count in counts:
            with using(count):
                started = time.perf_counter()
                step()
                seconds = time.perf_counter() - started
            # The first turn warms caches and thread pools; it counts only where there is time for no other.
            best[count] = seconds if turn <= 1 else min(best[count], seconds)
        if time.monotonic() - began > _LONGEST_S:
            break
    fastest = min(best, key=best.__getitem__)
    return (fastest if best[fastest] * _MARGIN < best[given] else given), best


@contextlib.contextmanager
def using(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
