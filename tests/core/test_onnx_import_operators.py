"""Every handler of the importer against ONNX Runtime, with attributes and shapes drawn at random, in several opsets."""

from __future__ import annotations

import functools
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from core.analysis import analyse
from core.errors import EngineError
from core.intake.onnx import read_onnx
from core.intake.onnx.handlers import HANDLERS
from tests.core import onnx_array_cases, onnx_elementwise_cases, onnx_layer_cases
from tests.core.onnx_graphs import CHANNELS, SIZE, GraphMaker, bytes_of, noise, run_file
from tests.core.onnx_operator_cases import CASES, OPSETS

KINDS = (onnx_array_cases, onnx_elementwise_cases, onnx_layer_cases)
"""Each registers its cases when it is imported."""

# A failing example of a graph is small already; making it smaller takes minutes.
PHASES = (Phase.explicit, Phase.generate)


def test_every_handler_is_tested():
    assert CASES.keys() == HANDLERS.keys()
    assert {build.__module__ for build in CASES.values()} == {kind.__name__ for kind in KINDS}


@functools.cache
def _seed(name: str) -> int:
    return zlib.crc32(name.encode()) % 1000


@pytest.mark.parametrize("operator", sorted(CASES))
def test_the_imported_network_computes_what_onnx_runtime_does(operator):
    @settings(max_examples=4, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def check(data):
        opset = data.draw(st.sampled_from(OPSETS[operator]))
        maker = GraphMaker(opset)
        output = CASES[operator](maker, data.draw, operator)
        model = maker.model(output)
        network = read_onnx(bytes_of(model))
        # The importer has compared them itself, at batch 1 too; this is somebody else's noise.
        x = noise(3, 3, SIZE, SIZE, seed=_seed(operator))
        (wanted,), (found,) = run_file(model, x=x.numpy()), network.run(x)
        assert found.shape == wanted.shape
        assert np.abs(found.numpy() - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())
        assert analyse(network).faults == ()

    check()


def test_a_mismatch_names_the_first_node_that_differs(monkeypatch):
    import core.intake.onnx.importing as importing

    def wrong(builder, node):
        from core.intake.onnx.builder import aten

        return builder.call(aten.relu.default, node.input(0))

    monkeypatch.setattr(importing, "HANDLERS", {**HANDLERS, "Sigmoid": wrong})
    maker = GraphMaker(13)
    output = maker.add("Neg", maker.add("Sigmoid", maker.add("Tanh", maker.h)))
    with pytest.raises(EngineError, match=r"first difference is at node 'Sigmoid_3' \(Sigmoid\)") as error:
        read_onnx(bytes_of(maker.model(output)))
    assert error.value.code == "invalid_model"


@pytest.mark.parametrize("batch", ["n", 1])
@pytest.mark.parametrize("follows", ["nothing", "softmax", "reshape"])
def test_a_squeeze_without_axes_means_what_makes_the_network_agree(batch, follows):
    """At its end the batch goes where there is one image; in front of a reshape it was never meant."""
    maker = GraphMaker(13, batch=batch)
    output = maker.add("Squeeze", maker.add("GlobalAveragePool", maker.h))
    if follows == "softmax":
        output = maker.add("Softmax", output, axis=-1)
    elif follows == "reshape":
        output = maker.add("Reshape", output, maker.integers([-1, CHANNELS]))
    network = read_onnx(bytes_of(maker.model(output)))
    assert bool(network.interface.tail) == (follows != "reshape")
    assert network.outputs[0].shape == ((CHANNELS, 1, 1) if network.interface.tail else (CHANNELS,))
