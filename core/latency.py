"""Latency caps: no formula predicts a latency, so it is measured, and MACs are what planning moves.

    latency ≈ fixed + slope × MACs

The first guess takes a latency to be proportional to the MACs; every miss adds a point, and the line through the last
two points says how many MACs the cap allows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.budget import Constraint, Costs
from core.choice import Choice, Chooser
from core.deliver.latency import Latency, measure_latency
from core.deliver.onnx_file import write_onnx
from core.errors import EngineError
from core.network import Network

# After a miss, plans are made again at most this often.
REPLANS = 3
# A clock is never twice the same: aim a little below the cap.
_AIM = 0.97
# One step cuts the MACs to no less than this share of the last plan's, and by no less than 1 − _LEAST_CUT.
_DEEPEST_CUT, _LEAST_CUT = 0.25, 0.95


def exported_latency(network: Network) -> Latency:
    """Write the network as ONNX beside everything else and time it: ONNX Runtime on the CPU, one thread, batch 1."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        write_onnx(network, path, compare=False)
        return measure_latency(path, network)


@dataclass
class LatencyGuide:
    """The MACs that a latency cap seems to allow. points: (MACs, measured ms) of the original and of every attempt."""

    limit_ms: float
    points: list[tuple[int, float]] = field(default_factory=list)

    def learn(self, macs: int, latency_ms: float) -> None:
        self.points.append((macs, latency_ms))

    @property
    def met(self) -> bool:
        """Whether the last measured network keeps the cap."""
        return self.points[-1][1] <= self.limit_ms

    def constraint(self) -> Constraint | None:
        """The cap on MACs for the next plan; None where nothing has to leave for the latency's sake."""
        if self.met:
            return None
        macs, latency_ms = self.points[-1]
        aim = _AIM * self.limit_ms
        wanted = macs * aim / latency_ms
        if len(self.points) > 1:
            (before, before_ms) = self.points[-2]
            if before > macs and before_ms > latency_ms:
                wanted = macs - (latency_ms - aim) * (before - macs) / (before_ms - latency_ms)
        return Constraint("macs", None, int(min(max(wanted, _DEEPEST_CUT * macs), _LEAST_CUT * macs)))


def analytic(constraints: Sequence[Constraint]) -> tuple[Constraint, ...]:
    return tuple(constraint for constraint in constraints if constraint.analytic)


def guide_for(constraints: Sequence[Constraint], original: Costs) -> LatencyGuide | None:
    """What stands for the cap on latency in planning, if there is one."""
    for constraint in constraints:
        if not constraint.analytic:
            return LatencyGuide(constraint.limit, [(original.macs, original.latency_ms)])
    return None


def guided(chooser: Chooser, capped: Sequence[Constraint], guide: LatencyGuide, choice: Choice) -> Choice:
    """A plan with as few MACs as the latency seems to need, or as can be; `choice` where that has them already."""
    cap = guide.constraint()
    if cap is None or cap.met_by(choice.plan.predicted):
        return choice
    try:
        return chooser.choose([*capped, cap])
    except EngineError as error:
        if error.code != "target_infeasible":
            raise
        return chooser.nearest([*capped, cap])


def delivered_latency(network: Network, latency: Latency | None, constraints: Sequence[Constraint]) -> Latency | None:
    """Of what is delivered, where it was exported (`latency`) or is capped.

    Whatever else runs on the machine only ever adds to it, so a miss is measured again and the least counts.
    """
    for cap in constraints:
        if not cap.analytic:
            latency = latency or exported_latency(network)
            for _ in range(REPLANS):
                if latency.p50 > cap.limit:
                    latency = min(latency, exported_latency(network), key=lambda found: found.p50)
    return latency
