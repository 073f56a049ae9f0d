"""Where the graphs are registered that call each operator of ONNX, with attributes and shapes drawn at random."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from onnx import TensorProto

from tests.core.onnx_graphs import GraphMaker

Draw = Callable[[st.SearchStrategy], object]
CASES: dict[str, Callable[[GraphMaker, Draw, str], str]] = {}
OPSETS: dict[str, list[int]] = {}
ALL = [7, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26]


def case(*operators: str, since: int = 7, until: int = 26) -> Callable:
    """Register `build(maker, draw, operator) -> output name` for each operator."""

    def register(build: Callable) -> Callable:
        for operator in operators:
            CASES[operator] = build
            OPSETS[operator] = [opset for opset in ALL if since <= opset <= until]
        return build

    return register


def as_float(maker: GraphMaker, name: str) -> str:
    return maker.add("Cast", name, to=TensorProto.FLOAT)


def axes_of(maker: GraphMaker, axes: list[int], as_input: bool) -> tuple[list[str], dict[str, object]]:
    return ([maker.integers(axes)], {}) if as_input else ([], {"axes": axes})
