"""How stored pixels become a network's inputs: divided by a scale, then normalised per channel."""

from __future__ import annotations

from collections.abc import Sequence

from core.recovery.chunks import invalid_dataset

DEFAULT_SCALE = 255.0
# Beyond these, float32 inputs would be all but zero or no longer finite.
_SCALES = (1e-3, 1e6)
_LEAST_DEVIATION, _LARGEST_MOMENT = 1e-6, 1e6
# Per-channel means and standard deviations.
Normalization = tuple[Sequence[float], Sequence[float]]


def checked_scale(scale: float | None) -> float:
    """The scale, 255 by default. Raises EngineError("dataset_invalid")."""
    if scale is not None and not _SCALES[0] <= scale <= _SCALES[1]:
        raise invalid_dataset(
            f"scale is {scale:g}; it is what uint8 pixels are divided by, a number from {_SCALES[0]:g} to {_SCALES[1]:g} "
            "(255 maps them to 0…1)."
        )
    return DEFAULT_SCALE if scale is None else float(scale)


def require_normalization(normalization: Normalization | None, channels: int) -> None:
    """Raise EngineError("dataset_invalid") unless there are usable values for each of an image's channels."""
    if normalization is None:
        return
    mean, std = normalization
    if len(mean) != channels or len(std) != channels:
        raise invalid_dataset(
            f"normalization has {len(mean)} means and {len(std)} standard deviations, and the images have {channels} "
            "channel(s); give one of each per channel."
        )
    if not all(_LEAST_DEVIATION <= value <= _LARGEST_MOMENT for value in std):
        raise invalid_dataset(
            f"normalization: the standard deviations are {list(std)}; each must be positive, from {_LEAST_DEVIATION:g} to "
            f"{_LARGEST_MOMENT:g}."
        )
    if not all(abs(value) <= _LARGEST_MOMENT for value in mean):
        raise invalid_dataset(f"normalization: the means are {list(mean)}; none may be beyond ±{_LARGEST_MOMENT:g}.")
