"""What a `.pwt` file turns back into, where the ONNX file holds tensors that were computed from weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from pennyweight import pwt
from pennyweight.pwt import onnx as pwt_onnx
from torch import nn

from core.deliver import deliver
from core.deliver.pwt_file import Compact, deliver_pwt
from core.encoding.container import read_pwt, write_pwt
from core.encoding.encode import encode
from core.encoding.kernels import find_kernels
from core.encoding.options import EncodingOptions
from core.encoding.quantized import QuantizedTensor
from core.errors import EngineError
from core.network import Network
from core.recovery import Recovered, load_dataset
from tests.core.recovery_cases import save_digits, trained_network

CPU = torch.device("cpu")


class Mixed(nn.Module):
    """Matrices over the last axis of images, group-norms and slopes: ONNX has none of them as PyTorch stores them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.PReLU(8)
        self.mix, self.head = nn.Linear(8, 24), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.act(self.norm(self.conv(x))).permute(0, 2, 3, 1)).mean((1, 2)))


@pytest.fixture(scope="module")
def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network.from_module(Mixed().eval(), {"input": (1, 8, 8)})


@pytest.mark.parametrize(("epochs", "opset"), [(0, None), (1, 17)])
def test_the_graph_of_the_file_has_the_delivered_values_and_opset(network, epochs, opset, tmp_path):
    dataset = load_dataset(save_digits(tmp_path))
    encoded = encode(
        Recovered(network, {}),
        network,
        dataset,
        EncodingOptions("cws", 4, epochs=epochs),
        stored=True,
        size_limit=None,
        opset=opset,
        seed=0,
        device=CPU,
        progress=lambda event: None,
    )
    assert bool(epochs) == encoded.details["fine_tuning"].get("kept", False)
    deliver(network, encoded.network, ("onnx", "pwt"), tmp_path, compact=encoded.compact, onnx_opset=opset)
    with pwt.open(tmp_path / "model.pwt") as file:
        pwt_onnx.write(tmp_path / "back.onnx", file.onnx_skeleton, {name: file[name] for name in file.names})
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    model = onnx.load(tmp_path / "back.onnx")
    assert opset is None or model.opset_import[0].version == opset
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for kernel in find_kernels(network, 0):
        assert len(np.unique(values[kernel.name])) <= 4
        assert values[kernel.name].shape == kernel.values.shape


def test_training_that_would_break_the_cap_is_not_kept(network, tmp_path):
    """Biases of zero take no room until they learn."""
    dataset = load_dataset(save_digits(tmp_path))
    blank = network.with_tensors(
        {name: torch.zeros_like(t) if name.endswith("bias") else t for name, t in network.tensors.items()}
    )

    def encoded(limit: int, epochs: int) -> dict:
        options = EncodingOptions("cws", epochs=epochs)
        found = encode(
            Recovered(blank, {}),
            blank,
            dataset,
            options,
            stored=True,
            size_limit=limit,
            seed=0,
            device=CPU,
            progress=lambda event: None,
        )
        return found.details

    limit = encoded(1 << 20, 0)["file_bytes"] + 30
    tight, roomy = encoded(limit, 1), encoded(limit + 1000, 1)
    assert tight["file_bytes"] <= limit < roomy["file_bytes"]
    assert not tight["fine_tuning"]["kept"] and roomy["fine_tuning"]["kept"]


def test_pruning_takes_the_asked_share_of_equal_weights(network):
    same = network.with_tensors({name: torch.ones_like(tensor) for name, tensor in network.tensors.items()})
    for kernel in find_kernels(same, 50.0):
        assert 0.4 <= kernel.survivors.mean() <= 0.5


def test_a_file_that_gives_other_values_back_is_not_delivered(tmp_path, monkeypatch):
    network = trained_network()
    kernels = find_kernels(network, 0)
    shared = {kernel.name: QuantizedTensor(*_few_values(network.tensors[kernel.name])) for kernel in kernels}
    network = network.with_tensors(
        {**network.tensors, **{name: torch.from_numpy(one.values()) for name, one in shared.items()}}
    )
    deliver_pwt(network, Compact(shared), tmp_path / "model.pwt")
    stored, _ = read_pwt(tmp_path / "model.pwt")
    assert all(
        (stored[name].values() == tensor.numpy()).all() for name, tensor in network.tensors.items() if name in shared
    )

    def sabotaged(path, tensors, *rest):
        name = kernels[0].name
        codebook = tensors[name].codebook.copy()
        codebook[-1] = np.nextafter(codebook[-1], np.float32(np.inf))
        return write_pwt(path, {**tensors, name: dataclasses.replace(tensors[name], codebook=codebook)}, *rest)

    monkeypatch.setattr("core.deliver.pwt_file.write_pwt", sabotaged)
    with pytest.raises(EngineError, match="with other values than were written") as error:
        deliver_pwt(network, Compact(shared), tmp_path / "model.pwt")
    assert error.value.code == "internal" and kernels[0].name in error.value.message
    monkeypatch.setattr("core.deliver.pwt_file.write_pwt", _truncated)
    with pytest.raises(EngineError, match="cannot be read again"):
        deliver_pwt(network, Compact(shared), tmp_path / "model.pwt")


def _few_values(tensor: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Indices and codebook of the weights rounded to sixteenths of the largest."""
    step = float(tensor.abs().max()) / 16
    codebook, indices = np.unique((tensor / step).round().numpy() * np.float32(step), return_inverse=True)
    return indices.reshape(tensor.shape), codebook.astype(np.float32)


def _truncated(path, *rest):
    summary = write_pwt(path, *rest)
    path.write_bytes(path.read_bytes()[:-1])
    return summary
