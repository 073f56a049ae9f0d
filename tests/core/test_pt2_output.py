"""model.pt2: loads with PyTorch alone, computes the same for any batch, and holds no pickle."""

from __future__ import annotations

import io
import json
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core.deliver.pt2_file import write_pt2
from core.intake import file_format, load_network
from core.network import Network

LOADED_ALONE = """
import json, sys
import numpy as np, torch
assert not [name for name in sys.modules if name.split(".")[0] in ("core", "timm", "torchvision")]
program = torch.export.load(sys.argv[1])
module = program.module()
for batch in (1, 2, 5):
    images = torch.from_numpy(np.load(sys.argv[2])[:batch])
    result = module(images)
    np.save(f"{sys.argv[3]}/{batch}.npy", (result[0] if isinstance(result, tuple) else result).detach().numpy())
print(json.dumps(sorted(program.state_dict)))
"""


class Mixed(nn.Module):
    """Batch and layer norms, a grouped and a transposed convolution, attention, sizes that follow the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.mix = nn.Conv2d(8, 8, 3, groups=4, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 5)
        self.drop = nn.Dropout(0.2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.up(torch.relu(self.mix(self.stem(image))))
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).reshape(image.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens.shape)
        return self.head(self.drop(mixed).mean(1))


def network_of(module: nn.Module, shape=(3, 8, 8)) -> Network:
    torch.manual_seed(0)
    return Network.from_module(module, {"image": shape})


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return network_of(Mixed())


@pytest.fixture(scope="module")
def path(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    write_pt2(network, path)
    return path


def test_it_loads_in_a_bare_interpreter_and_agrees(network, path, tmp_path):
    images = network.random_inputs(batch=5, seed=3)[0]
    np.save(tmp_path / "images.npy", images.numpy())
    command = [sys.executable, "-I", "-c", LOADED_ALONE, str(path), str(tmp_path / "images.npy"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=180)
    assert done.returncode == 0, done.stderr
    for batch in (1, 2, 5):
        want = network.run(images[:batch])[0].numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"{batch}.npy"), want, rtol=1e-5, atol=1e-6)
    assert json.loads(done.stdout) == sorted(network.tensors)


def test_no_member_of_the_archive_is_a_pickle(path):
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    described = [json.loads(data) for name, data in members.items() if name.endswith("_config.json")]
    raw = {one["path_name"] for config in described for one in config["config"].values()}
    assert raw and not any(one["use_pickle"] for config in described for one in config["config"].values())
    for name, data in members.items():
        leaf = name.rpartition("/")[2]
        if leaf in raw:
            continue
        assert not zipfile.is_zipfile(io.BytesIO(data)), name
        if data and not name.endswith(".json"):
            assert (len(data) < 64 and data.decode("ascii").isprintable()) or data == b"6\n", name
        with pytest.raises((ValueError, IndexError)):
            list(pickletools.genops(data))
    (examples,) = (data for name, data in members.items() if "sample_inputs" in name)
    assert not examples


def test_the_file_names_nothing_of_the_machine_that_wrote_it(path):
    data = path.read_bytes()
    for place in (str(Path(torch.__file__).parent), str(Path(__file__).parent), str(Path.home()) + "/", 'File \\"'):
        assert place.encode() not in data


def test_it_comes_in_again_as_the_same_network(network, path):
    again = load_network(path, architecture=None)
    assert file_format(path) == "pt2"
    assert again.inputs == network.inputs and again.outputs == network.outputs
    assert again.tensors.keys() == network.tensors.keys() and again.parameter_names == network.parameter_names
    for name, tensor in network.tensors.items():
        assert torch.equal(again.tensors[name], tensor)
    images = network.random_inputs(batch=4, seed=9)
    torch.testing.assert_close(again.run(*images), network.run(*images), rtol=1e-6, atol=1e-6)


def test_writing_twice_gives_the_same_bytes(network, path, tmp_path):
    write_pt2(network, tmp_path / "again.pt2")
    assert (tmp_path / "again.pt2").read_bytes() == path.read_bytes()
