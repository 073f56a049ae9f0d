"""What a delivered form lacks of the upload stands in the result, on the page and in the form itself."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, version_converter

from core.budget import Budget, Cap
from core.deliver.latency import Latency
from core.deliver.notices import notices, of_speed, require_outputs
from core.deliver.onnx_file import write_onnx
from core.deliver.report_html import report_html
from core.engine import CompressionRequest, compress
from core.errors import EngineError
from core.intake.onnx import read_onnx
from core.network import Network
from tests.core.onnx_graphs import GraphMaker, bytes_of

FORMS = ("onnx", "pt2", "safetensors", "report")


def detector(opset: int = 13) -> onnx.ModelProto:
    maker = GraphMaker(opset, batch=1)
    features = maker.add("Relu", maker.add("Conv", maker.h, maker.weight(16, 4, 3, 3), pads=[1, 1, 1, 1]))
    boxes = maker.add("Reshape", maker.add("Conv", features, maker.weight(4, 16, 1, 1)), maker.integers([1, 4, 36]))
    scores = maker.add("Sigmoid", maker.add("Conv", features, maker.weight(2, 16, 1, 1)))
    scores = maker.add("Reshape", scores, maker.integers([1, 2, 36]))
    limits = [maker.integers([3]), maker.constant(np.array([0.5], np.float32))]
    picked = maker.add("NonMaxSuppression", maker.add("Transpose", boxes, perm=[0, 2, 1]), scores, *limits)
    return maker.model(picked, types={picked: TensorProto.INT64})


def said(network: Network, *outputs: str, graph_in_pwt: bool = True) -> dict[str, str]:
    return {one["artifact"]: one["message"] for one in notices(network, outputs, graph_in_pwt=graph_in_pwt)}


def test_every_form_without_the_end_of_a_detector_says_so(tmp_path):
    (tmp_path / "model.onnx").write_bytes(detector().SerializeToString())
    request = CompressionRequest(tmp_path / "model.onnx", Budget((Cap("macs", max_ratio=0.5),)), outputs=FORMS)
    result = compress(request, tmp_path / "out")
    found = {one["artifact"]: one["message"] for one in result["notices"]}
    assert found.keys() == {"model.pt2", "model.py"}
    for message in found.values():
        assert "(NonMaxSuppression)" in message and message.endswith("model.onnx holds all of it.")
        assert message in " ".join(
            (tmp_path / "out" / "report.html").read_text(encoding="utf-8").replace("&#x27;", "'").split()
        )
    source = " ".join((tmp_path / "out" / "model.py").read_text(encoding="utf-8").split())
    assert "What the uploaded file computes from there (NonMaxSuppression)" in source


def test_a_delivery_that_holds_everything_says_nothing():
    network = read_onnx(bytes_of(detector()))
    assert said(network, "onnx", "pwt", "report") == {}
    assert said(network, "pt2", "pwt")["model.pt2"].endswith("model.pwt holds all of it.")
    assert said(network, "pt2")["model.pt2"].endswith("Ask for the output onnx to have all of it.")


def test_weights_without_a_graph_say_so():
    network = read_onnx(bytes_of(detector()))
    assert "tensors alone" in said(network, "pwt", graph_in_pwt=False)["model.pwt"]


def test_another_name_for_an_output_is_told_where_it_is_missing():
    maker = GraphMaker(13)
    again = maker.add("Identity", maker.h)
    network = read_onnx(bytes_of(maker.model(maker.h, again)))
    assert "one value has several names" in said(network, "safetensors", "onnx")["model.py"]


@pytest.mark.parametrize("follows", [True, False])
def test_axes_that_a_form_closes_are_named_with_their_size(follows):
    maker = GraphMaker(13, size=(8, 8))
    model = maker.model(maker.h if follows else maker.add("Add", maker.h, maker.weight(1, 4, 8, 8)))
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    found = said(read_onnx(bytes_of(model), [3, 8, 8]), "onnx", "pt2")
    message = found["model.pt2" if follows else ""]
    assert len(found) == 1 and "height (8), width (8) of input 'x'" in message


@pytest.mark.parametrize(("kind", "name"), [(TensorProto.FLOAT16, "float16"), (TensorProto.FLOAT, None)])
def test_half_precision_that_becomes_float32_is_told(kind, name):
    maker = GraphMaker(13)
    model = maker.model(maker.h)
    if name:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = kind
        for index, one in enumerate(model.graph.initializer):
            half = onnx.numpy_helper.to_array(one).astype(np.float16)
            model.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(half, one.name))
    found = said(read_onnx(bytes_of(model)), "onnx")
    assert (f"computes in {name}" in found[""]) if name else found == {}


def test_int8_behind_a_kept_end_is_refused_before_anything_is_computed():
    with pytest.raises(EngineError, match=r"\(NonMaxSuppression\) is kept as it is") as caught:
        require_outputs(read_onnx(bytes_of(detector())), ["onnx-int8"])
    assert caught.value.code == "invalid_request" and caught.value.param == "/outputs"


def test_an_end_that_the_newest_opset_cannot_say_is_written_in_its_own(tmp_path, monkeypatch):
    network = read_onnx(bytes_of(detector(17)))
    convert = version_converter.convert_version

    def only_older(model, opset):
        if opset > 20:
            raise RuntimeError("no adapter for NonMaxSuppression")
        return convert(model, opset)

    monkeypatch.setattr(version_converter, "convert_version", only_older)
    write_onnx(network, tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 17
    with pytest.raises(EngineError, match=r"cannot be written in opset 23 \(no adapter") as caught:
        write_onnx(network, tmp_path / "other.onnx", opset=23)
    assert caught.value.param == "/onnx/opset" and caught.value.code == "invalid_request"


def test_an_end_that_no_opset_can_say_is_not_blamed_on_an_opset_that_nobody_asked_for(tmp_path, monkeypatch):
    network = read_onnx(bytes_of(detector(11)))

    def never(model, opset):
        raise RuntimeError("no adapter for NonMaxSuppression")

    monkeypatch.setattr(version_converter, "convert_version", never)
    with pytest.raises(EngineError, match="of opset 11, cannot be written in opset 13") as caught:
        write_onnx(network, tmp_path / "model.onnx")
    assert caught.value.param == "/outputs"


def test_the_page_escapes_what_a_notice_quotes(tmp_path):
    (tmp_path / "model.onnx").write_bytes(detector().SerializeToString())
    request = CompressionRequest(tmp_path / "model.onnx", Budget((Cap("macs", max_ratio=0.9),)), outputs=("onnx",))
    result = compress(request, tmp_path / "out")
    page = report_html({**result, "notices": [{"artifact": "model.pt2", "message": "<script>" + "x" * 500}]})
    assert "&lt;script&gt;" + "x" * 500 in page and "<script>" not in page


def test_a_network_that_takes_longer_with_odd_widths_says_what_to_ask_for():
    def taking(p50: float) -> Latency:
        return Latency(p50, 2 * p50, batch=1, threads=1, runtime="onnxruntime")

    widths = {"stem": (32, 21), "body": (64, 40), "odd": (30, 17), "head": (64, 33)}
    (notice,) = of_speed(taking(2.0), taking(3.5), widths)
    assert notice["artifact"] == "model.onnx"
    assert "3.5 ms" in notice["message"] and "original's 2 ms" in notice["message"]
    assert "2 layers have widths that are no longer a multiple of 8" in notice["message"]
    assert "round_to=8" in notice["message"]
    assert of_speed(taking(2.0), taking(2.1), widths) == []  # chance
    assert of_speed(taking(0.03), taking(0.05), widths) == []  # overhead
    assert of_speed(taking(2.0), taking(3.5), {"body": (64, 40), "odd": (30, 17)}) == []  # nothing to ask for
    assert of_speed(None, None, widths) == []
