"""Bundles: one zip of the artifacts, streamed; for Triton with a config that says what the ONNX file says."""

from __future__ import annotations

import io
import re
import zipfile
from datetime import UTC, datetime
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from api import archive, triton
from api.archive import Member, zip_size, zip_stream
from api.onnx_signature import BLOCK_BYTES, Signature, TensorSignature, read_signature
from tests.api.conftest import ARTIFACT, problem

FILES = {"manifest.json": b"{}", "model.safetensors": bytes(1 << 20), "report.json": b'{"met": true}'}


def network(batch: str | int = "batch", weight_bytes: int = 400, *, weights_are_inputs: bool = False) -> bytes:
    """image (batch × 3 × 4 × size), mask (batch × 2, bool) → scores (batch × 10), index (batch, int64)."""
    value = helper.make_tensor_value_info
    inputs = [
        value("image", TensorProto.FLOAT, [batch, 3, 4, "size"]),
        value("mask", TensorProto.BOOL, [batch, 2]),
    ]
    if weights_are_inputs:
        inputs.append(value("weight", TensorProto.FLOAT, [weight_bytes // 4]))
    outputs = [value("scores", TensorProto.FLOAT16, [batch, 10]), value("index", TensorProto.INT64, [batch])]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [weight_bytes // 4], bytes(weight_bytes), raw=True)
    node = helper.make_node("Anything", ["image", "mask", "weight"], ["scores", "index"], domain="test")
    graph = helper.make_graph([node], "graph", inputs, outputs, initializer=[weight])
    return helper.make_model(graph).SerializeToString()


def finished(service: Any, files: dict[str, bytes], **options: Any) -> str:
    job = service.job(**options)["id"]
    service.inspect_model()
    service.finish_job(files)
    return f"/v1/jobs/{job}/bundle"


def test_flat_bundle_holds_every_artifact_as_it_is(service):
    url = finished(service, FILES, name="My net (40 %)")
    answer = service.client.get(url)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="My_net_40.zip"'
    assert answer.headers["content-length"] == str(len(answer.content))
    with zipfile.ZipFile(io.BytesIO(answer.content)) as bundle:
        assert bundle.testzip() is None
        assert {name: bundle.read(name) for name in bundle.namelist()} == FILES
        assert {info.compress_type for info in bundle.infolist()} == {zipfile.ZIP_STORED}
    assert service.client.get(url).content == answer.content
    again = service.client.get(url, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = service.client.head(url)
    assert head.headers["content-length"] == answer.headers["content-length"]
    job = service.client.get(url.removesuffix("/bundle")).json()
    assert job["links"]["bundle"] == service.url + url


def test_triton_bundle_is_a_model_repository(service):
    onnx_file = network()
    url = finished(service, {**FILES, "model.onnx": onnx_file}, name="net")
    answer = service.client.get(url, params={"layout": "triton"})
    assert answer.headers["content-disposition"] == 'attachment; filename="net-triton.zip"'
    assert answer.headers["content-length"] == str(len(answer.content))
    with zipfile.ZipFile(io.BytesIO(answer.content)) as bundle:
        assert bundle.namelist() == ["net/config.pbtxt", "net/1/model.onnx"]
        assert bundle.read("net/1/model.onnx") == onnx_file
        config = bundle.read("net/config.pbtxt").decode()
    assert 'name: "net"\nbackend: "onnxruntime"\n' in config
    assert "max_batch_size: 64\n" in config
    assert "dynamic_batching { }" in config
    tensors = re.findall(r'name: "(\w+)"\s+data_type: (\w+)\s+dims: \[ ([^]]*) \]', config)
    assert tensors == [
        ("image", "TYPE_FP32", "3, 4, -1"),
        ("mask", "TYPE_BOOL", "2"),
        ("scores", "TYPE_FP16", "10"),
        ("index", "TYPE_INT64", ""),
    ]


def test_network_of_a_fixed_batch_is_served_as_it_is():
    tensor = TensorSignature
    signature = Signature((tensor("x", 1, (1, 3, None)),), (tensor("y", 11, (1, 10)),))
    config = triton.config("net", signature)
    assert "max_batch_size: 0" in config
    assert "dynamic_batching" not in config
    assert re.findall(r"dims: \[ (.*) \]", config) == ["1, 3, -1", "1, 10"]
    with pytest.raises(ValueError, match="element type 14"):
        triton.config("net", Signature((tensor("x", 14, (1,)),), signature.outputs))
    assert 'name: "a\\042b\\134\\303\\244"' in triton.config('a"b\\ä', signature)


@pytest.mark.parametrize("weights_are_inputs", [False, True])
def test_signature_is_what_onnx_says_and_weights_are_skipped(weights_are_inputs):
    data = network(weight_bytes=8 << 20, weights_are_inputs=weights_are_inputs)
    asked: list[int] = []

    def read(start: int, end: int) -> bytes:
        asked.append(end - start)
        return data[start:end]

    signature = read_signature(read, len(data))
    graph = onnx.load_from_string(data).graph
    for found, said in ((signature.inputs, graph.input), (signature.outputs, graph.output)):
        expected = [
            TensorSignature(
                value.name,
                value.type.tensor_type.elem_type,
                tuple(d.dim_value or None for d in value.type.tensor_type.shape.dim),
            )
            for value in said
            if value.name != "weight"
        ]
        assert list(found) == expected
    assert sum(asked) <= 3 * BLOCK_BYTES


def test_every_cut_and_many_changes_of_a_file_are_refused_or_read_without_harm():
    data = network()

    def attempt(damaged: bytes) -> None:
        try:
            read_signature(lambda start, end: damaged[start:end], len(damaged))
        except ValueError as error:
            assert str(error)

    for end in range(len(data)):
        attempt(data[:end])
    for at in range(len(data)):
        for value in (0x00, 0x7F, 0x80, 0xFF):
            attempt(data[:at] + bytes([value]) + data[at + 1 :])


def test_file_of_endless_fields_is_given_up_soon():
    graph = b"\x2a\x00" * (1 << 19)
    data = b"\x3a\x80\x80\x40"  # the graph has 2^20 bytes
    with pytest.raises(ValueError, match="too many fields"):
        read_signature(lambda start, end: (data + graph)[start:end], len(data + graph))


def test_what_cannot_be_bundled_is_a_409_that_says_why(service):
    job = service.job()["id"]
    assert "queued" in problem(service.client.get(f"/v1/jobs/{job}/bundle"), 409, "nothing_to_bundle")["detail"]
    service.inspect_model()
    service.finish_job(FILES)
    triton_url = f"/v1/jobs/{job}/bundle?layout=triton"
    assert "outputs" in problem(service.client.get(triton_url), 409, "nothing_to_bundle")["detail"]
    damaged = finished(service, {"model.onnx": ARTIFACT})
    problem(service.client.get(damaged, params={"layout": "triton"}), 409, "nothing_to_bundle")
    problem(service.client.get(damaged, params={"layout": "tree"}), 422, "validation_failed")


def test_archive_too_large_for_the_old_form_is_still_read_by_others(monkeypatch):
    """The limit (2 GiB) is lowered; zipfile and we must agree on what lies beyond it."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1 << 20)
    monkeypatch.setattr(archive, "ZIP64_BYTES", 1 << 20)
    large = bytes(range(256)) * (5 << 12)
    members = [
        Member("large", len(large), lambda: io.BytesIO(large)),
        Member("small", 3, lambda: io.BytesIO(b"abc")),
    ]
    assert zip_size(members) is None
    data = b"".join(zip_stream(members, datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)))
    monkeypatch.undo()
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert found.testzip() is None
        assert (found.read("large"), found.read("small")) == (large, b"abc")
        assert found.getinfo("large").extract_version == zipfile.ZIP64_VERSION
