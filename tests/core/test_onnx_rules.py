"""Every rule writes what PyTorch computes, and a call that no rule covers is said to be one."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.deliver import onnx_file
from core.deliver.onnx_graph import DEFAULT_OPSET, Uncovered, emit
from core.deliver.onnx_graph.rules import RULES
from core.errors import EngineError
from core.network import Network
from tests.core.operator_cases import CALLS

# What goes through torch's exporter; a rule for one of them is welcome, and then its name leaves this list.
UNCOVERED = """
softshrink hardshrink logit expm1 log1p log2 log10 sgn erfc trunc frac nan_to_num isnan isinf isfinite zeros_like
ones_like threshold bitwise_and bitwise_or bitwise_xor addcdiv lerp full_like copy feature_alpha_dropout rrelu movedim
narrow tensor_split unsafe_chunk max_pool2d_with_indices pixel_unshuffle rms_norm var_mean logsumexp any
"""
UNCOVERED_CALLS = {
    *UNCOVERED.split(),
    *(
        f"{name} with {other}"
        for name in (
            "floor_divide",
            "remainder",
            "fmod",
            "fmax",
            "fmin",
            "atan2",
            "logical_and",
            "logical_or",
            "logical_xor",
        )
        for other in ("itself", "another", "a number")
    ),
    "clamp by a tensor",
    "write to a slice",
    "write into padding",
    "upsample nearest exact",
    "max with indices",
    "larger of two",
}


class Calling(nn.Module):
    """The call on twice the input, as floats."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x * 2).float()


def agrees(network: Network) -> onnx.ModelProto:
    """Emit the network, check the model and compare it with PyTorch at two batch sizes; gives the model."""
    model = emit(network)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = network.random_inputs(batch=batch, seed=batch)
        results = session.run(None, {s.name: x.numpy() for s, x in zip(network.inputs, inputs, strict=True)})
        for got, want in zip(results, network.run(*inputs), strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-3, atol=2e-5, equal_nan=True)
    return model


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_call_is_written_as_pytorch_computes_it_or_not_at_all(name):
    network = Network.from_module(Calling(CALLS[name]), {"input": (16, 8, 8)})
    if name in UNCOVERED_CALLS:
        with pytest.raises(Uncovered) as uncovered:
            emit(network)
        assert not uncovered.value.is_fault
    else:
        agrees(network)


class Around(nn.Module):
    """A function with parameters or buffers of its own."""

    def __init__(self, function, **tensors):
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x):
        return self.function(self, x)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def attention(self, x):
    tokens = x.flatten(2).transpose(1, 2)
    query, key, value = F.linear(tokens, self.qkv).reshape(-1, 64, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask).transpose(1, 2).flatten(1)


def windows(self, x):
    """Shifted windows with a mask that is built in the forward pass, as in Swin."""
    x = torch.roll(x.permute(0, 2, 3, 1), (-1, -1), (1, 2))
    blocks = x.view(x.shape[0], 2, 4, 2, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(x.shape[0] * 4, 16, 16)
    mask = x.new_zeros((8, 8))
    for value, rows in enumerate((slice(0, -4), slice(-4, -1), slice(-1, None))):
        mask[rows] = value
    mask = mask.view(2, 4, 2, 4).permute(0, 2, 1, 3).reshape(4, 16)
    mask = mask.unsqueeze(1) - mask.unsqueeze(2)
    mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
    scores = blocks @ blocks.transpose(1, 2)
    scores = scores.view(x.shape[0], 4, 16, 16) + mask.unsqueeze(0)
    return (scores.view(-1, 16, 16).softmax(-1) @ blocks).reshape(x.shape[0], -1)


def spread(self, x):
    table = self.table[self.index.view(-1)].view(4, 4, 16).permute(2, 0, 1)
    return F.interpolate(x, (4, 4)) * table.unsqueeze(0)


def live_sizes(self, x):
    return x.reshape(x.shape[0] * 4, 4, 64).reshape(x.shape[0], 2, 2, 4, 8, 8).flatten(1, 3) + torch.zeros(
        x.shape[0], 16, 1, 1
    )


def per_image(self, x):
    """Weights mixed from experts for every image, as in CondConv: strided and grouped, then of single points."""
    mix = torch.sigmoid(x.mean((2, 3)))[:, :4]
    weight = (mix @ self.experts).view(x.shape[0] * 8, 4, 3, 3)
    y = F.conv2d(x.reshape(1, x.shape[0] * 16, 8, 8), weight, None, 2, 1, 1, x.shape[0] * 4)
    y = y.reshape(x.shape[0], 8, 4, 4)
    weight = (mix @ self.points).view(x.shape[0] * 6, 8, 1, 1)
    return F.conv2d(y.reshape(1, x.shape[0] * 8, 4, 4), weight, groups=x.shape[0]).reshape(x.shape[0], 6, 4, 4)


WITH_TENSORS = {
    "weights of every image": Around(per_image, experts=random(4, 8 * 36), points=random(4, 48)),
    "a grouped, strided and dilated convolution": nn.Conv2d(16, 8, 3, (2, 1), (2, 1), (1, 2), groups=4),
    "a convolution that keeps the size": nn.Conv2d(16, 8, (4, 3), padding="same"),
    "a convolution without padding": nn.Conv2d(16, 8, 3, padding="valid", bias=False),
    "a transposed convolution": nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1, groups=2),
    "a convolution over one axis": nn.Sequential(nn.Flatten(2), nn.Conv1d(16, 4, 5, padding=2)),
    "a matrix on the last axis": nn.Linear(8, 5),
    "a classifier": nn.Sequential(nn.Flatten(), nn.Linear(1024, 5, bias=False)),
    "a batch-norm alone": nn.BatchNorm2d(16, affine=False).eval(),
    "a layer norm": nn.LayerNorm((8, 8), eps=1e-3),
    "a layer norm without parameters": nn.LayerNorm(8, elementwise_affine=False),
    "a group norm": nn.GroupNorm(4, 16, eps=1e-2),
    "a slope per channel": nn.PReLU(16),
    "one slope": nn.PReLU(),
    "an average over unequal windows": nn.AdaptiveAvgPool2d((3, 5)),
    "an average with padding left out": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "a maximum with one more window": nn.MaxPool2d(3, 2, ceil_mode=True),
    "bilinear with aligned corners": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "attention with a mask": Around(attention, qkv=random(24, 16), mask=random(1, 2, 64, 64)),
    "windows with a mask made on the way": Around(windows),
    "a table by index": Around(spread, table=random(9, 16), index=torch.arange(16).view(4, 4) % 9),
    "sizes of the batch": Around(live_sizes),
    "weights computed from weights": Around(
        lambda self, x: F.conv2d(x, (self.weight - self.weight.mean((1, 2, 3), True)) * self.gain.view(-1, 1, 1, 1)),
        weight=random(8, 16, 1, 1),
        gain=random(8),
    ),
    "weights computed from the input": Around(
        lambda self, x: torch.matmul(
            x.flatten(2), torch.sigmoid(x.mean((2, 3))).unsqueeze(2).expand(-1, 16, 4).flip(2).repeat(1, 4, 1)
        ),
    ),
    "einsum": Around(lambda self, x: torch.einsum("bchw,oc->bohw", x, self.mix), mix=random(4, 16)),
    "a sum over groups": Around(lambda self, x: (x.view(-1, 2, 8, 8, 8) * self.gain).sum(1), gain=random(2, 1, 1, 1)),
}


@pytest.mark.parametrize("name", sorted(WITH_TENSORS))
def test_calls_with_tensors_are_written_as_pytorch_computes_them(name):
    agrees(Network.from_module(WITH_TENSORS[name], {"input": (16, 8, 8)}))


def normalised(channels):
    norm = nn.BatchNorm2d(channels)
    for index, vector in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
        nn.init.uniform_(vector, 0.5, 1.5) if index % 3 == 0 else nn.init.normal_(vector)
    return norm


class Branches(nn.Module):
    """A convolution with its batch-norm, one that is read twice, and one that is shared."""

    def __init__(self):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(16, 16, 3, padding=1), normalised(16)
        self.read_twice, self.second_norm = nn.Conv2d(16, 16, 1, bias=False), normalised(16)
        self.shared, self.norms = nn.Conv2d(16, 16, 1), nn.ModuleList([normalised(16), normalised(16)])

    def forward(self, x):
        x = self.first_norm(self.first(x))
        y = self.read_twice(x)
        x = F.relu(self.second_norm(y)) + y
        for norm in self.norms:
            x = norm(self.shared(x))
        return x


def test_a_batch_norm_goes_into_the_convolution_that_it_alone_reads():
    model = agrees(Network.from_module(Branches(), {"input": (16, 8, 8)}))
    assert operators(model).count("Conv") == 4 and operators(model).count("BatchNormalization") == 1
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"first.weight", "first.bias", "read_twice.weight", "second_norm.weight", "shared.weight"} <= names


def test_what_depends_on_weights_alone_is_one_tensor():
    network = Network.from_module(WITH_TENSORS["weights computed from weights"], {"input": (16, 8, 8)})
    assert operators(agrees(network)) == ["Conv"]


class Writes(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.register_buffer("table", torch.zeros(8, 8))
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def _reads_the_old_name(self, x):
    y = x * 2
    F.relu_(y)
    return y + 1


def _writes_a_copy_of_a_weight(self, x):
    table = self.table.clone()
    table[:, :4].fill_(3)
    return x + table


def _reads_a_view_made_before(self, x):
    y = x * 2
    flat = y.flatten(1)
    y.add_(1)
    return flat * 3


def _writes_a_part(self, x):
    y = x * 2
    y[:, :4].zero_()
    return y


def test_a_value_written_over_is_the_new_one_under_its_old_name():
    agrees(Network.from_module(Writes(_reads_the_old_name), {"input": (16, 8, 8)}))


def test_a_copy_of_a_weight_is_written_and_the_weight_is_not():
    network = Network.from_module(Writes(_writes_a_copy_of_a_weight), {"input": (16, 8, 8)})
    agrees(network)
    assert all(not bool(tensor.any()) for name, tensor in network.tensors.items() if name == "table")


@pytest.mark.parametrize("forward", [_reads_a_view_made_before, _writes_a_part])
def test_a_value_written_over_and_seen_through_a_view_goes_another_way(forward, tmp_path):
    network = Network.from_module(Writes(forward), {"input": (16, 8, 8)})
    with pytest.raises(Uncovered):
        emit(network)
    onnx_file.write_onnx(network, tmp_path / "model.onnx")


def test_a_rule_that_fails_or_writes_something_else_leaves_the_file_to_the_other_way(tmp_path, monkeypatch):
    network = Network.from_module(nn.Sequential(nn.Conv2d(16, 8, 3), nn.ReLU()), {"input": (16, 8, 8)})

    def fails(call):
        raise KeyError("sizes")

    def wrong(call):
        return call.builder.add("Sigmoid", call.tensor("self"))

    def malformed(call):
        return call.builder.add("Relu", call.tensor("self"), call.tensor("self"))

    for rule in (fails, wrong, malformed):
        monkeypatch.setitem(RULES, "relu", rule)
        path = tmp_path / f"{rule.__name__}.onnx"
        onnx_file.write_onnx(network, path)
        assert [node.op_type for node in onnx.load(path).graph.node] == ["Conv", "Relu"]
    monkeypatch.setitem(RULES, "relu", fails)
    with pytest.raises(Uncovered, match="sizes") as uncovered:
        emit(network)
    assert uncovered.value.is_fault


def test_a_network_that_neither_way_can_write_is_refused_with_the_call_that_stops_it(tmp_path):
    def per_image_with_bias(self, x):
        n = x.shape[0]
        mix = torch.sigmoid(x.mean((2, 3)))
        weight = (mix @ self.experts).view(n * 8, 16, 1, 1)
        return F.conv2d(x.reshape(1, n * 16, 8, 8), weight, mix[:, :8].reshape(-1), groups=n).reshape(n, 8, 8, 8)

    network = Network.from_module(Around(per_image_with_bias, experts=random(16, 128)), {"input": (16, 8, 8)})
    with pytest.raises(EngineError, match=r"cannot be written as ONNX.*conv2d.*weights per image") as refused:
        onnx_file.write_onnx(network, tmp_path / "model.onnx")
    assert refused.value.code == "invalid_request" and refused.value.param == "/outputs"
    assert not (tmp_path / "model.onnx").exists()


class Outputs(nn.Module):
    """The input itself, one value twice, and a value that is read further."""

    def forward(self, x):
        y = torch.relu(x)
        return x, y, y, y * 2


def test_outputs_may_be_an_input_and_one_value_may_be_two_of_them():
    model = agrees(Network.from_module(Outputs(), {"picture": (16, 8, 8)}))
    assert [value.name for value in model.graph.input] == ["picture"]
    assert [value.name for value in model.graph.output] == [f"output_{index}" for index in range(4)]
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_names_are_given_out_once_even_where_a_tensor_is_called_like_an_output():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.output = nn.Parameter(torch.ones(16, 1, 1))
            self.relu = nn.Parameter(torch.ones(16, 1, 1))

        def forward(self, x):
            return torch.relu(x * self.output) * self.relu

    agrees(Network.from_module(Named(), {"input": (16, 8, 8)}))


def test_both_ways_of_writing_agree():
    network = Network.from_module(Branches(), {"input": (16, 8, 8)})
    inputs = {"input": network.random_inputs(2, seed=0)[0].numpy()}
    results = []
    for model in (emit(network), onnx_file._exported_by_torch(network, DEFAULT_OPSET)):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        results.append(session.run(None, inputs)[0])
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)
