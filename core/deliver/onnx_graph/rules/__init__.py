"""How each ATen operator is said in ONNX: one function per operator or family, by the operator's plain name."""

from collections.abc import Callable, Mapping
from typing import Any

from core.deliver.onnx_graph.call import Call
from core.deliver.onnx_graph.rules import convolutions, elementwise, matrices, reductions, sampling, shapes

Rule = Callable[[Call], Any]

RULES: Mapping[str, Rule] = {
    **elementwise.RULES,
    **shapes.RULES,
    **convolutions.RULES,
    **sampling.RULES,
    **matrices.RULES,
    **reductions.RULES,
}

__all__ = ["RULES"]
