"""Whole graphs as different producers write them: read, pruned, delivered, with the same inputs and outputs as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from core.analysis import analyse
from core.architectures import build
from core.budget import Budget, Cap
from core.engine import CompressionRequest, compress
from core.intake.onnx import read_onnx
from tests.core.onnx_graphs import GraphMaker, bytes_of, noise, run_file

HALF = Budget((Cap("macs", max_ratio=0.5),))


def keras(maker: GraphMaker) -> str:
    """Channels last: the image is turned, layers are turned back, SAME padding is asymmetric."""
    x = maker.add("Transpose", maker.h, perm=[0, 2, 3, 1])
    x = maker.add("Transpose", maker.add("Relu", x), perm=[0, 3, 1, 2])
    x = maker.add("Conv", x, maker.weight(16, 4, 3, 3), maker.weight(16), auto_pad="SAME_UPPER", strides=[2, 2])
    x = maker.add("Relu", x)
    x = maker.add("Pad", x, maker.integers([0, 0, 0, 0, 0, 0, 1, 1]))
    x = maker.add("Conv", x, maker.weight(12, 16, 3, 3), strides=[2, 2])
    x = maker.add("Transpose", x, perm=[0, 2, 3, 1])
    x = maker.add("ReduceMean", x, axes=[1, 2], keepdims=0)
    return maker.add("Add", maker.add("MatMul", x, maker.weight(12, 5)), maker.weight(5))


def cntk(maker: GraphMaker) -> str:
    """Products by reshaped weights, biases added afterwards, a Reshape of a constant into a matrix."""
    x = maker.add("Conv", maker.h, maker.weight(8, 4, 5, 5), auto_pad="SAME_UPPER", dilations=[1, 1])
    x = maker.add("Relu", maker.add("Add", x, maker.weight(8, 1, 1)))
    x = maker.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], auto_pad="NOTSET", pads=[0, 0, 0, 0])
    x = maker.add("Conv", x, maker.weight(16, 8, 3, 3), auto_pad="SAME_UPPER")
    x = maker.add("Relu", maker.add("Add", x, maker.weight(16, 1, 1)))
    flat = maker.add("Reshape", x, maker.integers([-1, 16 * 3 * 3]))
    matrix = maker.add("Reshape", maker.weight(16, 3, 3, 5), maker.integers([16 * 3 * 3, 5]))
    return maker.add("Add", maker.add("MatMul", flat, matrix), maker.weight(1, 5))


def pytorch(maker: GraphMaker) -> str:
    """A residual block with batch-norm, and a flatten that computes its shape."""
    x = maker.add("Conv", maker.h, maker.weight(16, 4, 3, 3), pads=[1, 1, 1, 1])
    norm = [maker.weight(16) for _ in range(3)] + [maker.weight(16, positive=True)]
    skip = maker.add("Relu", maker.add("BatchNormalization", x, *norm))
    x = maker.add("Conv", skip, maker.weight(16, 16, 3, 3), pads=[1, 1, 1, 1])
    x = maker.add("Relu", maker.add("Add", x, skip))
    x = maker.add("Clip", x, maker.constant(0.0), maker.constant(6.0))
    pooled = maker.add("GlobalAveragePool", x)
    batch = maker.add("Gather", maker.add("Shape", pooled), maker.constant(np.array(0, np.int64)), axis=0)
    batch = (
        maker.add("Unsqueeze", batch, maker.integers([0]))
        if maker.opset >= 13
        else maker.add("Unsqueeze", batch, axes=[0])
    )
    flat = maker.add("Reshape", pooled, maker.add("Concat", batch, maker.integers([-1]), axis=0))
    return maker.add("Gemm", flat, maker.weight(5, 16), maker.weight(5), transB=1)


def paddle(maker: GraphMaker) -> str:
    """Swish by hand, a depthwise layer, upsampling by scales."""
    x = maker.add("Conv", maker.h, maker.weight(16, 4, 1, 1))
    x = maker.add("Mul", x, maker.add("Sigmoid", x))
    x = maker.add("Conv", x, maker.weight(16, 1, 3, 3), pads=[1, 1, 1, 1], group=16)
    x = maker.add("HardSigmoid", x, alpha=0.2)
    x = maker.add("Conv", x, maker.weight(12, 16, 1, 1))
    empty = maker.constant(np.zeros(0, np.float32))
    scales = maker.constant(np.array([1, 1, 2, 2], np.float32))
    x = maker.add(
        "Resize", x, empty, scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    return maker.add("Conv", x, maker.weight(3, 12, 3, 3), pads=[1, 1, 1, 1])


PRODUCERS = {
    "keras": (keras, 13),
    "cntk": (cntk, 11),
    "pytorch": (pytorch, 13),
    "pytorch, old": (pytorch, 11),
    "paddle": (paddle, 11),
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_the_graph_is_read_pruned_and_delivered_as_it_came(name, tmp_path):
    write, opset = PRODUCERS[name]
    maker = GraphMaker(opset)
    output = write(maker)
    model = maker.model(output)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    network = read_onnx(bytes_of(model))
    x = noise(2, 3, 6, 6)
    (wanted,) = run_file(model, x=x.numpy())
    assert np.abs(network.run(x)[0].numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert analyse(network).faults == ()
    result = compress(CompressionRequest(model_path=path, budget=HALF), tmp_path / "out")
    assert result["met"] and result["equivalence"]["passed"]
    assert 0.4 * result["baseline"]["macs"] < result["compressed"]["macs"] <= 0.5 * result["baseline"]["macs"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["x"]
    assert [one.name for one in session.get_outputs()] == [output]
    assert session.run(None, {"x": x.numpy()})[0].shape == wanted.shape


def test_a_file_for_one_image_at_a_time_stays_one(tmp_path):
    maker = GraphMaker(13, batch=1)
    x = maker.add("Conv", maker.h, maker.weight(16, 4, 3, 3), pads=[1, 1, 1, 1])
    x = maker.add("Conv", maker.add("Relu", x), maker.weight(8, 16, 3, 3), pads=[1, 1, 1, 1])
    flat = maker.add("Reshape", x, maker.integers([1, 288]))
    (tmp_path / "model.onnx").write_bytes(
        maker.model(maker.add("Gemm", flat, maker.weight(288, 5))).SerializeToString()
    )
    compress(CompressionRequest(model_path=tmp_path / "model.onnx", budget=HALF), tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 6, 6]


def test_open_heights_and_widths_stay_open(tmp_path):
    maker = GraphMaker(13)
    x = maker.add("Conv", maker.h, maker.weight(16, 4, 3, 3), pads=[1, 1, 1, 1])
    x = maker.add("Conv", maker.add("Relu", x), maker.weight(3, 16, 3, 3), pads=[1, 1, 1, 1])
    model = maker.model(maker.add("Sigmoid", x))
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    request = CompressionRequest(model_path=tmp_path / "model.onnx", budget=HALF, input_shape=[3, 8, 8])
    compress(request, tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[2:] == ["height", "width"]
    for shape in ((1, 3, 8, 8), (2, 3, 10, 14)):
        assert session.run(None, {"x": noise(*shape).numpy()})[0].shape == shape


def test_a_detector_keeps_its_own_end(tmp_path):
    """NonMaxSuppression has no form in ATen: it stays behind the smaller network as it was."""
    maker = GraphMaker(13, batch=1)
    features = maker.add("Relu", maker.add("Conv", maker.h, maker.weight(16, 4, 3, 3), pads=[1, 1, 1, 1]))
    boxes = maker.add("Conv", features, maker.weight(4, 16, 1, 1))
    scores = maker.add("Sigmoid", maker.add("Conv", features, maker.weight(2, 16, 1, 1)))
    boxes = maker.add("Transpose", maker.add("Reshape", boxes, maker.integers([1, 4, 36])), perm=[0, 2, 1])
    scores = maker.add("Reshape", scores, maker.integers([1, 2, 36]))
    most = maker.integers([3])
    picked = maker.add("NonMaxSuppression", boxes, scores, most, maker.constant(np.array([0.5], np.float32)))
    model = maker.model(picked, scores, types={picked: TensorProto.INT64})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    result = compress(CompressionRequest(model_path=tmp_path / "model.onnx", budget=HALF), tmp_path / "out")
    assert result["met"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == [picked, scores]
    found = session.run(None, {"x": noise(1, 3, 6, 6).numpy()})
    assert found[0].dtype == np.int64 and found[0].shape[1] == 3 and found[1].shape == (1, 2, 36)


def test_several_inputs_and_outputs_keep_names_and_order(tmp_path):
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    declare = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["template", "w"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["search", "w"], ["b"], pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["a"], ["mean"]),
            helper.make_node("Mul", ["b", "mean"], ["joined"]),
            helper.make_node("Conv", ["joined", "v"], ["score"]),
            helper.make_node("Conv", ["joined", "u"], ["box"]),
        ],
        "tracker",
        [
            declare("template", TensorProto.FLOAT, ["n", 3, 8, 8]),
            declare("search", TensorProto.FLOAT, ["n", 3, 12, 12]),
        ],
        [declare("score", TensorProto.FLOAT, ["n", 1, 12, 12]), declare("box", TensorProto.FLOAT, ["n", 4, 12, 12])],
        [weight("w", 16, 3, 3, 3), weight("v", 1, 16, 1, 1), weight("u", 4, 16, 1, 1)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    compress(CompressionRequest(model_path=tmp_path / "model.onnx", budget=HALF), tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["template", "search"]
    assert [one.name for one in session.get_outputs()] == ["score", "box"]


def test_what_was_delivered_comes_in_again_and_lands_as_from_its_state_dict(tmp_path):
    torch.manual_seed(0)
    module: nn.Module = build("cifar_resnet", {"depth": 8, "width": 8, "num_classes": 10}).eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(0.5, 2)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    request = CompressionRequest(
        model_path=tmp_path / "net.pt", architecture="cifar_resnet", budget=Budget((Cap("macs", max_ratio=0.999),))
    )
    compress(request, tmp_path / "whole")
    from_weights = compress(CompressionRequest(**{**vars(request), "budget": HALF}), tmp_path / "a")
    again = compress(CompressionRequest(model_path=tmp_path / "whole" / "model.onnx", budget=HALF), tmp_path / "b")
    assert again["met"] and again["equivalence"]["passed"]
    assert again["compressed"]["macs"] == pytest.approx(from_weights["compressed"]["macs"], rel=0.01)


def test_the_folder_keeps_no_trace_of_the_upload_but_its_names(tmp_path: Path):
    maker = GraphMaker(13)
    x = maker.add("Conv", maker.h, maker.weight(32, 4, 1, 1))
    model = maker.model(maker.add("Conv", x, maker.weight(8, 32, 1, 1)))
    model.producer_name, model.doc_string = "someone", "a note"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    compress(
        CompressionRequest(model_path=tmp_path / "model.onnx", budget=Budget((Cap("macs", max_ratio=0.8),))),
        tmp_path / "out",
    )
    assert onnx.load(tmp_path / "out" / "model.onnx").doc_string != "a note"
