"""Every opset that may be asked for is written, and ONNX Runtime computes the same from it."""

from __future__ import annotations

import typing

import annotated_types
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.deliver.onnx_file import write_onnx
from core.deliver.onnx_graph import DEFAULT_OPSET, FIRST_OPSET, LAST_OPSET, Uncovered, emit
from core.deliver.onnx_graph.opsets import OLDER
from core.errors import EngineError
from core.network import Network
from store.contract import OnnxOptions

OPSETS = range(FIRST_OPSET, LAST_OPSET + 1)


class Changing(nn.Module):
    """A network of every operator that came or changed within the range of opsets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.gate = nn.Conv2d(16, 32, 1)
        self.norm = nn.LayerNorm([16])
        self.bare = nn.LayerNorm([8, 8], elementwise_affine=False)
        self.group = nn.GroupNorm(4, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16), nn.GELU(approximate="tanh"))
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = F.glu(self.gate(self.stem(image)), dim=1)
        x = F.mish(self.bare(x)) + self.group(x)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        tokens = tokens + self.mlp(tokens)
        x = tokens.transpose(1, 2).reshape(image.shape[0], 16, 8, 8)
        maps = F.interpolate(x, size=(12, 20), mode="bilinear", align_corners=False)
        maps = maps + F.interpolate(x, size=(12, 20), mode="nearest") + F.interpolate(x, (12, 20), mode="bicubic")
        maps = F.pad(maps, (1, 2, 0, 1), mode="reflect")
        spread = maps.amax((2, 3)) - maps.amin((2, 3)) + maps.var((2, 3)) + maps.norm(dim=(2, 3)) + maps.norm(1, (2, 3))
        return self.head(x.mean((2, 3)) + spread), maps.reshape(image.shape[0] * 2, 8, -1).sum(1)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network.from_module(Changing(), {"image": (3, 8, 8)})


def run(model: onnx.ModelProto, network: Network, batch: int) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = network.random_inputs(batch=batch, seed=batch)
    results = session.run(None, {"image": inputs[0].numpy()})
    for got, want in zip(results, network.run(*inputs), strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", OPSETS)
def test_the_changing_operators_are_written_as_the_opset_has_them(opset, network):
    model = emit(network, opset=opset)
    assert model.opset_import[0].version == opset
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 3):
        run(model, network, batch)


def test_the_network_of_changing_operators_has_them_all(network):
    written = {node.op_type for node in emit(network, opset=DEFAULT_OPSET).graph.node}
    assert set(OLDER) - {"Shape"} <= written
    assert {"Shape"} <= {node.op_type for node in emit(network, opset=13).graph.node}


def test_no_tensor_is_written_that_nothing_reads(network):
    for opset in (FIRST_OPSET, DEFAULT_OPSET):
        graph = emit(network, opset=opset).graph
        assert {one.name for one in graph.initializer} <= {name for node in graph.node for name in node.input}


def test_the_default_is_the_default(network, tmp_path):
    write_onnx(network, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert model.opset_import[0].version == DEFAULT_OPSET == 26 and model.ir_version == 13


@pytest.mark.parametrize("opset", [FIRST_OPSET - 1, LAST_OPSET + 1])
def test_an_opset_outside_the_range_is_refused_by_number(opset, network, tmp_path):
    with pytest.raises(EngineError, match=f"opset 13 to 26, and opset {opset}") as caught:
        write_onnx(network, tmp_path / "model.onnx", opset=opset)
    assert caught.value.code == "invalid_request" and caught.value.param == "/onnx/opset"


def test_what_an_opset_cannot_hold_is_refused_with_one_that_can(tmp_path):
    class Wrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, image):
            return self.conv(torch.ops.aten.pad.default(image, [1, 1, 1, 1], "circular"))

    network = Network.from_module(Wrapping(), {"image": (3, 8, 8)})
    run(emit(network, opset=19), network, 2)
    with pytest.raises(Uncovered, match="needs opset 19"):
        emit(network, opset=18)


def test_the_contract_takes_exactly_what_the_engine_writes():
    (field,) = OnnxOptions.model_fields.values()
    limits = {type(one): one for one in field.metadata}
    assert (limits[annotated_types.Ge].ge, limits[annotated_types.Le].le) == (FIRST_OPSET, LAST_OPSET)
    assert field.default == DEFAULT_OPSET and typing.get_origin(field.annotation) is None
