"""What the importer refuses: everything at once, by name, before anything is built."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from core.errors import EngineError
from core.intake.onnx import read_onnx
from core.intake.onnx.refusal import FIRST_OPSET, LAST_OPSET
from tests.core.onnx_graphs import GraphMaker, bytes_of, noise, run_file


def refusal(model: onnx.ModelProto | bytes, input_shape: object = None) -> EngineError:
    data = memoryview(model) if isinstance(model, bytes) else bytes_of(model)
    with pytest.raises(EngineError) as error:
        read_onnx(data, input_shape)
    return error.value


def plain(opset: int = 13) -> onnx.ModelProto:
    maker = GraphMaker(opset)
    return maker.model(maker.add("Relu", maker.h))


def test_everything_that_is_in_the_way_is_listed_at_once():
    model = plain()
    make = helper.make_node
    branch = helper.make_graph([], "branch", [], [])
    model.graph.node.extend(
        [
            make("QuantizeLinear", ["v1", "c0"], ["q0"]),
            make("QuantizeLinear", ["v1", "c0"], ["q1"]),
            make("QLinearAdd", ["v1"], ["q2"], domain="com.microsoft"),
            make("If", ["v1"], ["q3"], then_branch=branch, else_branch=branch),
            make("StringNormalizer", ["v1"], ["q4"]),
        ]
    )
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    error = refusal(model)
    assert error.code == "unsupported_format"
    for words in (
        "quantised operators (upload the float model): QuantizeLinear ×2",
        "operators of custom domains: com.microsoft:QLinearAdd",
        "control flow (export a graph without branches and loops): If",
        "operators that are not read: StringNormalizer",
        "external data (save everything in one file): c0",
    ):
        assert words in error.message


@pytest.mark.parametrize("version", [FIRST_OPSET - 1, LAST_OPSET + 1])
def test_an_opset_outside_of_the_range_is_named(version):
    model = plain()
    model.opset_import[0].version = version
    assert f"an opset outside of {FIRST_OPSET} to {LAST_OPSET}: {version}" in refusal(model).message


def test_a_missing_opset_import_is_named():
    model = plain()
    del model.opset_import[:]
    assert "no opset_import for the standard operators" in refusal(model).message


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph"])
def test_external_data_is_refused_wherever_it_hides(place, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 64)
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "outside")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(secret))
    model = plain()
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "constant":
        model.graph.node.append(helper.make_node("Constant", [], ["outside"], value=tensor))
    else:
        inner = helper.make_graph([], "inner", [], [], [tensor])
        model.graph.node.append(helper.make_node("Loop", ["", ""], ["late"], body=inner))
    error = refusal(model)
    assert error.code == "unsupported_format"
    assert ("external data" if place != "subgraph" else "control flow") in error.message


def test_sparse_initializers_and_functions_are_refused():
    model = plain()
    values = numpy_helper.from_array(np.ones(1, np.float32), "thin")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "at")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    model.functions.append(
        helper.make_function(
            "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 13)]
        )
    )
    message = refusal(model).message
    assert "sparse initializers: thin" in message and "functions of its own (inline them): Twice" in message


def test_sparse_constants_and_lists_of_tensors_are_named_with_everything_else():
    model = plain()
    values = numpy_helper.from_array(np.ones(1, np.float32), "thin")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "at")
    thin = helper.make_node("Constant", [], ["thin"], sparse_value=helper.make_sparse_tensor(values, indices, [4]))
    many = helper.make_node("Constant", [], ["many"])
    many.attribute.append(helper.make_attribute("value", [values, values]))
    outside = helper.make_node("Constant", [], ["outside"])
    outside.attribute.append(helper.make_attribute("value", [values]))
    outside.attribute[0].tensors[0].data_location = TensorProto.EXTERNAL
    model.graph.node.extend([thin, many, outside, helper.make_node("StringNormalizer", ["thin"], ["text"])])
    error = refusal(model)
    assert error.code == "unsupported_format"
    for words in (
        "lists of tensors or types: Constant.sparse_value, Constant.value ×2",
        "operators that are not read: StringNormalizer",
        "external data (save everything in one file): thin",
    ):
        assert words in error.message


def test_dropout_in_training_mode_is_named():
    maker = GraphMaker(13)
    output = maker.add("Dropout", maker.h, maker.constant(0.5), maker.constant(np.array(True)))
    assert "(Dropout): training mode; export the network in evaluation mode" in refusal(maker.model(output)).message


def test_a_tensor_that_claims_more_than_it_has_allocates_nothing():
    model = plain()
    model.graph.initializer[0].dims[0] = 2**40
    error = refusal(model)
    assert error.code == "invalid_model" and "breaks the format's rules" in error.message


@pytest.mark.parametrize("damage", ["cut", "noise", "empty graph", "not finite"])
def test_damaged_files_are_named_as_such(damage):
    data = plain().SerializeToString()
    if damage == "cut":
        error = refusal(data[: len(data) // 2])
    elif damage == "noise":
        error = refusal(data[:4] + bytes(np.random.default_rng(0).integers(0, 256, len(data), np.uint8)))
    elif damage == "empty graph":
        error = refusal(onnx.ModelProto(ir_version=8))
    else:
        model = plain()
        values = numpy_helper.to_array(model.graph.initializer[0]).copy()
        values[0, 0] = np.nan
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, model.graph.initializer[0].name))
        error = refusal(model)
        assert "not finite" in error.message
    assert error.code == "invalid_model"


def test_a_graph_without_weights_has_nothing_to_compress():
    maker = GraphMaker(13)
    maker.nodes.clear()
    model = maker.model(maker.add("Relu", "x"))
    assert "no weights" in refusal(model).message


def test_an_input_that_is_no_image_is_named():
    model = plain()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    assert "Input 'x' of the ONNX graph is INT64" in refusal(model).message


def test_a_batch_of_several_is_named():
    maker = GraphMaker(13, batch=4)
    error = refusal(maker.model(maker.add("Relu", maker.h)))
    assert error.code == "shape_mismatch" and "fixed batch of 4" in error.message


class TestOpenSizes:
    def model(self) -> onnx.ModelProto:
        maker = GraphMaker(13)
        model = maker.model(maker.add("GlobalAveragePool", maker.h))
        for axis, name in ((2, "height"), (3, "width")):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
        return model

    def test_the_message_says_what_to_give(self):
        error = refusal(self.model())
        assert error.code == "shape_mismatch"
        assert "[3, 'height', 'width']" in error.message and "e.g. [3, 224, 224]" in error.message

    @pytest.mark.parametrize("shape", [[3, 8], [4, 8, 8], [3, 0, 8], [3, 8, -1]])
    def test_a_shape_that_does_not_fit_is_named(self, shape):
        error = refusal(self.model(), shape)
        assert error.code == "shape_mismatch" and str(shape) in error.message

    def test_an_unknown_input_name_is_named(self):
        assert "input_shape names 'y'; the inputs are 'x'" in refusal(self.model(), {"y": [3, 8, 8]}).message

    def test_with_a_shape_the_axes_stay_open(self):
        network = read_onnx(bytes_of(self.model()), [3, 8, 8])
        assert network.inputs[0].shape == (3, 8, 8)
        assert network.interface.open_axes == {"x": {2: "height", 3: "width"}}


def test_layers_behind_a_result_that_is_not_per_image_are_refused_with_the_place():
    maker = GraphMaker(13)
    mixed = maker.add("ReduceMean", maker.h, axes=[0], keepdims=1)
    error = refusal(maker.model(maker.add("Conv", mixed, maker.weight(4, 4, 1, 1))))
    assert error.code == "unsupported_format"
    assert "ReduceMean_2" in error.message and "The first layer behind that is node 'Conv_3'" in error.message


def test_half_precision_files_are_widened():
    maker = GraphMaker(13)
    model = maker.model(maker.add("Relu", maker.h))
    wide = run_file(model, x=noise(2, 3, 6, 6).numpy())[0]
    for one in model.graph.initializer:
        one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).astype(np.float16), one.name))
    for one in (*model.graph.input, *model.graph.output):
        one.type.tensor_type.elem_type = TensorProto.FLOAT16
    network = read_onnx(bytes_of(model))
    assert np.abs(network.run(noise(2, 3, 6, 6))[0].numpy() - wide).max() < 1e-2


def test_what_stands_behind_a_squeeze_without_axes_is_refused_for_its_own_reason():
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "kernel"], ["features"]),
        make("GlobalAveragePool", ["features"], ["pooled"]),
        make("Squeeze", ["pooled"], ["vector"]),
        make("Dropout", ["vector"], ["kept", "mask"], name="drop"),
        make("MatMul", ["kept", "matrix"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(noise(*shape).numpy(), name)
        for shape, name in (((4, 3, 3, 3), "kernel"), ((4, 5), "matrix"))
    ]
    values = [("x", TensorProto.FLOAT, [1, 3, 8, 8]), ("y", TensorProto.FLOAT, [5]), ("mask", TensorProto.BOOL, [4])]
    image, scores, mask = (helper.make_tensor_value_info(*value) for value in values)
    graph = helper.make_graph(nodes, "graph", [image], [scores, mask], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    error = refusal(model)
    assert error.code == "unsupported_format" and "'drop' (Dropout): the output mask" in error.message
