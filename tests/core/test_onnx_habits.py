"""Odd graphs that producers write all the same: outputs that are turned, whole numbers, unread or twice there; odd names."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from core.budget import Budget, Cap
from core.deliver.onnx_file import write_onnx
from core.engine import CompressionRequest, compress
from core.errors import EngineError
from core.intake.onnx import read_onnx
from core.intake.onnx.names import NameTree
from tests.core.onnx_graphs import GraphMaker, bytes_of, noise, run_file


def features(maker: GraphMaker, channels: int = 8) -> str:
    x = maker.add("Relu", maker.add("Conv", maker.h, maker.weight(16, 4, 3, 3), pads=[1, 1, 1, 1]))
    return maker.add("Conv", x, maker.weight(channels, 16, 1, 1))


def delivered(model: onnx.ModelProto, folder, **given) -> onnxruntime.InferenceSession:
    """The network of the file, written again."""
    write_onnx(read_onnx(bytes_of(model), **given), folder / "again.onnx")
    return onnxruntime.InferenceSession(folder / "again.onnx", providers=["CPUExecutionProvider"])


def assert_same_outputs(model: onnx.ModelProto, session: onnxruntime.InferenceSession, batch: int) -> None:
    x = noise(batch, 3, 6, 6).numpy()
    assert [one.name for one in session.get_outputs()] == [one.name for one in model.graph.output]
    for got, want in zip(session.run(None, {"x": x}), run_file(model, x=x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", ["n", 1])
def test_an_output_with_its_images_in_the_middle_goes_out_so(batch, tmp_path):
    """Readers of text give [time, batch, classes]."""
    maker = GraphMaker(13, batch=batch)
    rows = maker.add("ReduceMean", features(maker), axes=[2], keepdims=0)
    turned = maker.add("Transpose", rows, perm=[2, 0, 1])
    model = maker.model(turned, maker.add("Softmax", turned, axis=-1))
    network = read_onnx(bytes_of(model))
    assert [spec.shape for spec in network.outputs] == [(6, 8), (6, 8)]
    assert_same_outputs(model, delivered(model, tmp_path), 1 if batch == 1 else 3)


def test_rows_of_all_images_in_one_list_are_not_declared_as_the_batch(tmp_path):
    maker = GraphMaker(13)
    rows = maker.add("Transpose", features(maker), perm=[0, 2, 3, 1])
    model = maker.model(maker.add("Reshape", rows, maker.integers([-1, 4])))
    session = delivered(model, tmp_path)
    assert not isinstance(session.get_outputs()[0].shape[0], int) and session.get_outputs()[0].shape[0] != "n"
    assert_same_outputs(model, session, 3)


def test_places_and_truth_values_are_outputs_like_others(tmp_path):
    maker = GraphMaker(13)
    scores = features(maker)
    places = maker.add("ArgMax", scores, axis=1, keepdims=0)
    sure = maker.add("Greater", scores, maker.constant(0.5))
    model = maker.model(places, sure, types={places: TensorProto.INT64, sure: TensorProto.BOOL})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    request = CompressionRequest(
        tmp_path / "model.onnx", Budget((Cap("macs", max_ratio=0.6),)), outputs=("onnx", "pt2", "safetensors")
    )
    result = compress(request, tmp_path / "out")
    assert result["met"] and result["equivalence"]["passed"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.type for one in session.get_outputs()] == ["tensor(int64)", "tensor(bool)"]


def test_results_that_nobody_reads_are_as_good_as_not_asked_for():
    maker = GraphMaker(13)
    dropped, _ = maker.add("Dropout", features(maker), outputs=2)
    pooled, _ = maker.add("MaxPool", dropped, kernel_shape=[2, 2], strides=[2, 2], outputs=2)
    assert read_onnx(bytes_of(maker.model(pooled))).outputs[0].shape == (8, 3, 3)


def test_an_axis_that_the_network_cannot_follow_closes_no_other(tmp_path):
    maker = GraphMaker(13)
    model = maker.model(maker.add("GlobalAveragePool", features(maker)))
    for axis, name in enumerate(("n", "channels", "height", "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    network = read_onnx(bytes_of(model), [3, 6, 6])
    assert network.interface.open_axes == {"x": {2: "height", 3: "width"}}
    assert network.interface.closed_axes == {"x": {1: "channels"}}
    assert delivered(model, tmp_path, input_shape=[3, 6, 6]).get_inputs()[0].shape == ["n", 3, "height", "width"]


def test_one_output_twice_is_refused_by_name():
    maker = GraphMaker(13)
    model = maker.model(features(maker))
    model.graph.output.append(model.graph.output[0])
    with pytest.raises(EngineError, match=r"two outputs named 'v\d'") as caught:
        read_onnx(bytes_of(model))
    assert caught.value.code == "invalid_model"


def test_names_that_become_equal_or_lie_within_each_other_end():
    """A layer `a/b` beside a tensor `a`: no number of underscores at the end would part them."""
    names = ["a", "a/b", "a:b", "a/b/c", "a b", "ä\"b'", "a.b.c.d"]
    weights = [numpy_helper.from_array(np.random.default_rng(at).normal(size=(3, 3, 1, 1)).astype(np.float32), name)
               for at, name in enumerate(names)]  # fmt: skip
    values = ["x", *(f"{name}/out" for name in names)]
    nodes = [helper.make_node("Conv", [values[at], name], [values[at + 1]], name=name) for at, name in enumerate(names)]
    nodes.append(helper.make_node("Add", [values[-1], "a/b"], ["sum/out"], name="a/b/c/d"))
    weights.append(numpy_helper.from_array(np.ones((1, 3, 6, 6), np.float32), "a/b.c"))
    nodes[-1].input[1] = "a/b.c"
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 6, 6]) for name in ("x", "sum/out")]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    network = read_onnx(bytes_of(model))
    assert len(network.tensors) == len(weights)
    x = noise(2, 3, 6, 6)
    np.testing.assert_allclose(network.run(x)[0].numpy(), run_file(model, x=x.numpy())[0], rtol=1e-3, atol=1e-4)


def test_every_name_is_given_once_and_none_lies_under_another():
    tree = NameTree()
    given = [tree.take(name) for name in ("a", "a", "a.b", "a.b", "a.c", "b.c.d", "b.c", "b", "b.c.d.e") * 3]
    assert len(set(given)) == len(given)
    assert not any(one.startswith(f"{other}.") for one in given for other in given)


def test_many_equal_names_take_no_longer_each():
    tree = NameTree()
    assert len({tree.take("layer.weight") for _ in range(20_000)}) == 20_000
    assert len(tree.take("layer.weight")) < 30


def test_images_for_a_network_of_places_alone_are_refused_before_any_training(tmp_path):
    maker = GraphMaker(13)
    places = maker.add("ArgMax", features(maker), axis=1, keepdims=0)
    (tmp_path / "model.onnx").write_bytes(maker.model(places, types={places: TensorProto.INT64}).SerializeToString())
    np.savez(tmp_path / "images.npz", x=noise(40, 3, 6, 6).numpy())
    request = CompressionRequest(
        tmp_path / "model.onnx", Budget((Cap("macs", max_ratio=0.6),)), dataset_path=tmp_path / "images.npz"
    )
    with pytest.raises(EngineError, match="only places or truth values") as caught:
        compress(request, tmp_path / "out")
    assert caught.value.code == "dataset_invalid"
