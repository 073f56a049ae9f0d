"""Steering: how a cap on the file is shared out between the planner, who removes channels, and the encoding.

The file is `model.pwt` where that is asked for. With shared values the planner only removes channels where the cap would
leave the encoding fewer than a few bits for each weight; without, the file is the weights as they are and a little more
than their safetensors, which is what the planner can predict.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.budget import Constraint
from core.deliver.pwt_file import Compact, measured_pwt, skeleton_of
from core.encoding.options import EncodingOptions
from core.errors import EngineError
from core.network import Network
from core.planning import safetensors_bytes

# Bits per weight, all else in the file included, that the planner leaves to the encoding: at fewer, fewer channels with
# more bits each lose less.
PLANNED_BITS = 4.0
_FLOAT_BITS = 32
# A header of other widths packs a little differently.
_SLACK_BYTES = 256


@dataclass(frozen=True)
class Steering:
    """stored: whether `model.pwt` is asked for. overhead_bytes: of it over safetensors, without shared values.
    least_bytes: below which no cap on the file is put to the planner.
    """

    options: EncodingOptions
    stored: bool
    overhead_bytes: int = 0
    least_bytes: int = 0

    @staticmethod
    def of(
        options: EncodingOptions, outputs: Sequence[str], original: Network, *, capped: bool, opset: int | None = None
    ) -> Steering:
        """capped: whether there is a cap on the file. opset: of the ONNX file that it turns back into."""
        stored = "pwt" in outputs
        overhead = 0
        if stored and capped and not options.lossy:
            plain = measured_pwt(original, Compact({}, skeleton_of(original, opset), options.format))
            overhead = max(0, plain.file_bytes - safetensors_bytes(original)) + _SLACK_BYTES
        return Steering(options, stored, overhead)

    @property
    def encodes(self) -> bool:
        """Whether there is anything to do after recovery."""
        return self.stored or self.options.lossy

    def takes(self, constraint: Constraint) -> bool:
        """Whether the encoding, not the planner, is what brings the network under this cap."""
        return constraint.metric == "size" and self.stored and self.options.lossy

    def planned(self, constraints: Sequence[Constraint]) -> tuple[Constraint, ...]:
        """The caps as the planner is to see them."""
        return tuple(map(self._planned, constraints))

    def eased(self, refusal: EngineError) -> Steering | None:
        """Where the planner refuses for the file alone, ask it for no less than it can do: how small the file becomes
        after that the encoding finds out, and says."""
        missed = [one for one in refusal.details.get("constraints", ()) if not one["met"]]
        if not (self.stored and self.options.lossy) or [one["metric"] for one in missed] != ["size"]:
            return None
        return dataclasses.replace(self, least_bytes=missed[0]["value"])

    def size_limit(self, constraints: Sequence[Constraint]) -> int | None:
        """Bytes that the encoding may take."""
        return next((int(constraint.limit) for constraint in constraints if self.takes(constraint)), None)

    def _planned(self, constraint: Constraint) -> Constraint:
        if constraint.metric != "size" or not self.stored:
            return constraint
        if not self.options.lossy:
            return dataclasses.replace(constraint, limit=max(1, constraint.limit - self.overhead_bytes))
        levels = self.options.levels
        bits = PLANNED_BITS if levels is None else min(PLANNED_BITS, max(1.0, math.log2(max(2, levels))))
        return dataclasses.replace(constraint, limit=max(self.least_bytes, int(constraint.limit * _FLOAT_BITS / bits)))
