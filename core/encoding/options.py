"""What a user may ask of the encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.encoding.quantizers import MOST_LEVELS
from core.errors import EngineError

DEFAULT_LEVELS = 32


@dataclass(frozen=True)
class EncodingOptions:
    """How weights are shared and stored.

    levels: the most values that weights may share, a reserved zero not counted; None is 32, or up to 256 where a cap on the
    file decides. prune: the percentage of each layer's weights, smallest first, that become zero. unified: one codebook
    for all convolutions and one for all matrices, instead of one per layer. epochs: of fine-tuning the shared values, by
    default a short run wherever there are images; 0 for none.
    """

    quantizer: Literal["none", "cws", "pws", "uq", "ecsq"] = "none"
    levels: int | None = None
    prune: float = 0.0
    unified: bool = False
    format: Literal["auto", "hac", "shac", "im", "csc", "ans"] = "auto"
    epochs: int | None = None

    def __post_init__(self) -> None:
        """Raises EngineError("invalid_request")."""
        if self.levels is not None and not 1 <= self.levels <= MOST_LEVELS:
            raise _refused(f"levels is {self.levels}; it is a number from 1 to {MOST_LEVELS}.", "levels")
        if not 0 <= self.prune < 100:
            raise _refused(f"prune is {self.prune:g}; it is a percentage from 0 to under 100.", "prune")
        if self.quantizer == "none":
            asked = [name for name in ("levels", "prune", "unified", "epochs") if getattr(self, name)]
            if asked:
                raise _refused(f"{asked[0]} needs a quantizer: cws, pws, uq or ecsq.", asked[0])

    @property
    def lossy(self) -> bool:
        return self.quantizer != "none"


def _refused(message: str, field: str) -> EngineError:
    return EngineError("invalid_request", f"encoding.{message}", param=f"/encoding/{field}")
