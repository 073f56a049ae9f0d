"""Label rules: one handler per ATen operator, keyed by its base name (in-place variants share it).

    HANDLERS["conv2d"](recorder, call) -> Value with the labels of the result

A handler must account for every labelled axis of every tensor argument: pass it on, tie it, or freeze it. An operator
that is not here freezes what it touches, which is always sound.
"""

from __future__ import annotations

from collections.abc import Mapping

from core.analysis.context import Handler
from core.analysis.handlers import (
    convolution,
    creation,
    elementwise,
    indexing,
    joining,
    matrix,
    normalisation,
    pooling,
    reduction,
    repeating,
    reshape,
    splitting,
)

HANDLERS: Mapping[str, Handler] = {
    **elementwise.HANDLERS,
    **convolution.HANDLERS,
    **matrix.HANDLERS,
    **normalisation.HANDLERS,
    **pooling.HANDLERS,
    **reduction.HANDLERS,
    **reshape.HANDLERS,
    **joining.HANDLERS,
    **splitting.HANDLERS,
    **creation.HANDLERS,
    **indexing.HANDLERS,
    **repeating.HANDLERS,
}
