"""A graph that magnifies float32's rounding is imported; one that computes something else by as much is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from core.errors import EngineError
from core.intake import load_network
from core.intake.onnx import reference
from core.intake.onnx.reference import TOLERANCE, difference

WIDTH = 4096


def difference_of_two_products(path: Path) -> Path:
    """y = x·(W + D) − x·W: all but three digits of either product cancel."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((WIDTH, 8)).astype(np.float32)
    other = (weight + 1e-3 * generator.standard_normal(weight.shape)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "other"], ["a"]),
        helper.make_node("MatMul", ["x", "weight"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cancelling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(other, "other")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def test_rounding_alone_refuses_nothing(tmp_path):
    path = difference_of_two_products(tmp_path / "net.onnx")
    network = load_network(path, architecture=None)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    inputs = network.random_inputs(batch=2, seed=2)
    (want,) = session.run(None, {"x": inputs[0].numpy()})
    assert TOLERANCE < difference(network.run(*inputs)[0].numpy(), want) < 1e-2


def test_a_wrong_result_is_refused_however_small_the_fault(tmp_path, monkeypatch):
    path = difference_of_two_products(tmp_path / "net.onnx")
    honest = reference._expected

    def wrong(*arguments, **options):
        return [value * np.float32(1.02) for value in honest(*arguments, **options)]

    monkeypatch.setattr(reference, "_expected", wrong)
    with pytest.raises(EngineError, match="differs from ONNX Runtime"):
        load_network(path, architecture=None)
