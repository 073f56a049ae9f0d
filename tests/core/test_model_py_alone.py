"""The generated `model.py` loads with torch alone, computes the network, trains like ordinary modules and reads well."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.analysis import analyse
from core.architectures import build
from core.deliver.artifacts import write_safetensors
from core.deliver.model_py import write_model_py
from core.network import Network
from core.surgery import apply
from tests.core.channel_networks import InvertedResidual, ShuffleAndDense, Vgg, export, random_keep

CHECK = Path(__file__).with_name("model_py_check.py")


class Mixed(nn.Module):
    """Depthwise, functional weights, dropout in both forms, a module used twice, two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same")
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8))])
        self.shared = nn.Conv2d(8, 8, 1, bias=False)
        self.kernel = nn.Parameter(torch.randn(8, 1, 3, 3))
        self.register_buffer("offset", torch.randn(8, 1, 1))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.mean = nn.Buffer(torch.rand(8))
        self.variance = nn.Buffer(torch.rand(8) + 0.5)
        self.norm = nn.LayerNorm([8])
        self.groups = nn.GroupNorm(2, 8)
        self.dropout = nn.Dropout(0.5)
        self.dropout2d = nn.Dropout2d(0.3)
        self.head = nn.Linear(8, 5)

    def forward(self, left, right):
        left = self.dropout2d(self.blocks[0](self.stem(left))) + self.offset * self.scalar
        x = self.shared(F.relu(self.shared(left)))
        x = torch.cat([self.groups(F.conv2d(x, self.kernel, padding=1, groups=8)), right], dim=1)
        x = F.batch_norm(x[:, :8], self.mean, self.variance, training=self.training)
        pooled = self.norm(F.dropout(x.mean((2, 3)), 0.25, self.training))
        return self.head(self.dropout(pooled)), pooled


class Unusual(nn.Module):
    """Operators that people write rarely, in place where the aliasing matters, and values that are read much later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.prelu = nn.PReLU(8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]))

    def forward(self, x):
        x = self.up(self.conv(x))
        y = x * 1
        z = y.relu_()
        first = y + z.sigmoid()
        view = first.view(first.shape[0], 2, 4, *first.shape[2:])
        view.mul_(0.5)
        x = first.index_select(1, self.order) + torch.roll(self.prelu(x), 1, 2)
        x = self.instance(x).cumsum(1) ** 2 / 7 + 1e-12
        a, b, c = torch.split(x, [2, 3, 3], dim=1)
        x = torch.cat([b, F.pad(a, (0, 0, 0, 0, 1, 0), value=-float("inf")).clamp(-1, 1), -c], 1)
        x = torch.where(x > 0.2, x, 1 - x) + x.var(1, keepdim=True) - x.amax((2, 3), keepdim=True)
        x = F.interpolate(x, size=5, mode="bilinear", align_corners=False) + F.interpolate(x, size=5)
        values, _ = F.max_pool2d(x, 3, 2, 1, ceil_mode=True).flatten(2).max(2)
        return torch.einsum("bc,bd->bcd", values, values)[:, 1, 2:7:2].softmax(-1), torch.logsumexp(x, (1, 2, 3))


class Residual(nn.Module):
    """Bottom-level names that are numbers, keywords or private, tied weights and a block with a downsampling branch."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("0", "__hidden", "größe", "😀"):
            self.add_module(name, nn.Conv2d(4, 4, 3, padding=1))
        self.weights = nn.ParameterList([torch.rand(4, 1, 1), torch.rand(4, 1, 1)])
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
        self.body[2].weight = self.body[0].weight
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x):
        for name in ("0", "__hidden", "größe", "😀"):
            x = F.relu(self.get_submodule(name)(x) + x)
        return F.relu(self.body(x) + self.downsample(x)) * self.weights[0] - self.weights[1]


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def pruned(network: Network, seed: int) -> Network:
    analysis = analyse(network)
    return apply(network, analysis, random_keep(analysis, np.random.default_rng(seed)))


def resnet20() -> Network:
    return export(build("cifar_resnet20", {}), 3, 32, 32)


def mixed() -> Network:
    return Network.from_module(Mixed(), {"left": (3, 8, 8), "input": (4, 8, 8)})


NETWORKS = {
    "resnet20": resnet20,
    "resnet20 pruned": lambda: pruned(resnet20(), 3),
    "vgg": lambda: export(Vgg(), 3, 16, 16),
    "vgg pruned": lambda: pruned(export(Vgg(), 3, 16, 16), 1),
    "inverted residual pruned": lambda: pruned(export(InvertedResidual(), 3, 16, 16), 2),
    "shuffle and dense": lambda: export(ShuffleAndDense(), 3, 8, 8),
    "mixed": mixed,
    "unusual": lambda: Network.from_module(Unusual(), {"input": (3, 8, 8)}),
    "names": lambda: export(Residual(), 4, 8, 8),
    "sequential": lambda: export(Plain(), 3, 8, 8),
}


class Written:
    """A network, and the folder with its model.py and weights."""

    def __init__(self, name: str, folder: Path) -> None:
        torch.manual_seed(0)
        self.network = NETWORKS[name]()
        self.folder = folder
        write_model_py(self.network, folder / "model.py")
        write_safetensors(self.network, folder / "model.safetensors", pruned=False)
        self.source = (folder / "model.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=NETWORKS)
def written(request, tmp_path_factory) -> Written:
    return Written(request.param, tmp_path_factory.mktemp("model"))


def alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the check in a fresh interpreter that can import neither this project nor any third party but torch."""
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(CHECK), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_it_computes_the_network_with_torch_alone_and_trains(written):
    expected = {}
    for batch in (1, 5):
        inputs = written.network.random_inputs(batch, batch)
        expected[str(batch)] = [list(map(torch.clone, inputs)), list(written.network.run(*map(torch.clone, inputs)))]
    names = sorted(written.network.tensors)
    parameters = sorted(name for name in written.network.parameter_names)
    torch.save({"cases": expected, "names": names, "parameters": parameters}, written.folder / "expected.pt")
    done = alone(written.folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["worst_error"] <= 1e-6
    assert report["foreign_modules"] == []
    has_batch_norm = any(name.endswith("num_batches_tracked") for name in names)
    assert report["statistics_move_in_training"] is has_batch_norm


def test_it_is_formatted_and_lint_free_and_says_nothing_of_this_machine(written):
    path = written.folder / "model.py"
    assert max(map(len, written.source.splitlines())) <= 100
    for command in (["format", "--check"], ["check", "--select", "E4,E7,E9,F,I"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", str(path)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for machine in (Path(__file__).resolve().parents[2], Path(sys.prefix), written.folder):
        assert str(machine) not in written.source


def test_it_is_the_same_every_time(written, tmp_path):
    write_model_py(written.network, tmp_path / "again.py")
    assert (tmp_path / "again.py").read_text(encoding="utf-8") == written.source


def test_it_only_uses_torch_and_the_standard_library(written):
    roots = set()
    for node in ast.walk(ast.parse(written.source)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module.partition(".")[0])
    assert roots <= {"torch", *sys.stdlib_module_names}


def test_a_pruned_resnet_reads_as_a_person_would_write_it(tmp_path):
    source = Written("resnet20 pruned", tmp_path).source
    assert "aten" not in source and "9223372036854775807" not in source
    assert source.count("x[:, :, ::2, ::2]") == 2
    assert re.search(r"F\.pad\(\w+, \(0, 0, 0, 0, \d+, \d+\)\)", source)
    for line in ("x = self.conv1(", "y = self.layer1[0].conv1(x)", "x = self.linear(x)", "return x"):
        assert f"        {line}" in source
    assert re.search(r"\n\n        # layer2\.0\b.*\n        y = self\.layer2\[0\]\.conv1\(x\)\n", source)


def test_dropout_and_batch_norm_obey_the_mode(tmp_path):
    source = Written("mixed", tmp_path).source
    assert "self.dropout = nn.Dropout(0.5)" in source
    assert source.count("self.training") == 2  # functional dropout and batch-norm
    assert "F.conv2d(" in source and "self.kernel" in source


def test_rare_operators_are_written_as_the_aten_call_that_they_are(tmp_path):
    source = Written("unusual", tmp_path).source
    assert "torch.ops.aten.logsumexp.default(" in source and ".cumsum(" in source and ".roll(" in source


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def packed(header, body=b"\0" * 8, size=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + body


MALFORMED = {
    "empty": b"",
    "too short for a header size": b"\x08\0\0",
    "header longer than the file": packed({"a": entry()}, size=1 << 40),
    "header size at its largest": packed({"a": entry()}, size=2**64 - 1),
    "header that is not JSON": packed(b"{"),
    "header that is not UTF-8": packed(b"\xff\xfe"),
    "header that is a list": packed([1]),
    "header nested too deeply": packed(b"[" * 100_000),
    "entry that is a number": packed({"a": 1}),
    "entry without a type": packed({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "unknown type": packed({"a": entry("F31")}),
    "type that is a list": packed({"a": entry(["F32"])}),
    "shape that is a number": packed({"a": {**entry(), "shape": 2}}),
    "size that is a string": packed({"a": entry(shape=("2",))}),
    "size that is a fraction": packed({"a": entry(shape=(2.0,))}),
    "negative sizes": packed({"a": entry(shape=(-1, -2))}),
    "size beyond 64 bits": packed({"a": entry(shape=(0, 2**70), offsets=(0, 0))}),
    "offsets beyond the file": packed({"a": entry(offsets=(4, 12))}),
    "negative offset": packed({"a": entry(offsets=(-8, 0))}),
    "offsets the wrong way round": packed({"a": entry(offsets=(8, 0))}),
    "one offset": packed({"a": entry(offsets=(0,))}),
    "fewer bytes than the shape needs": packed({"a": entry(shape=(3,))}),
    "data cut short": packed({"a": entry()}, body=b"\0" * 7),
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    scope: dict = {}
    exec(compile(Written("sequential", folder).source, "model.py", "exec"), scope)
    return scope["read_safetensors"]


@pytest.mark.parametrize("name", MALFORMED)
def test_its_reader_refuses_a_malformed_file(reader, tmp_path, name):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(ValueError, match=r"weights\.safetensors"):
        reader(path)


def test_its_reader_reads_every_type_scalars_and_empty_tensors(reader, tmp_path):
    from safetensors.torch import save_file

    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    tensors = {str(dtype): torch.arange(3).to(dtype) for dtype in (*dtypes, torch.int8, torch.uint8, torch.bool)}
    tensors |= {"scalar": torch.tensor(7, dtype=torch.int64), "empty": torch.zeros(0, 3), "matrix": torch.rand(3, 5)}
    save_file(tensors, tmp_path / "all.safetensors", metadata={"format": "pt"})
    read = reader(tmp_path / "all.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        torch.testing.assert_close(read[name], tensor, rtol=0, atol=0)
