"""The generated model.py is plain PyTorch that a person can read, needs torch alone, and is the network exactly."""

from __future__ import annotations

import dataclasses
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from core.architectures import build
from core.deliver.artifacts import write_safetensors
from core.deliver.model_py import model_source, write_model_py
from core.deliver.source import forward as forward_module
from core.deliver.source.layout import Group, render
from core.deliver.source.reader import read_safetensors
from core.errors import EngineError
from core.module_form import to_module
from core.network import Network

# Runs in a fresh process in which importing anything of ours, numpy or safetensors fails.
CHILD = """
import importlib.util, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"numpy", "safetensors", "core", "onnx", "scipy"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("model", folder + "/model.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
model = module.load(folder + "/model.safetensors")
assert not model.training
import torch
for batch in (1, 5):
    case = module.read_safetensors(f"{folder}/case{batch}.safetensors")
    inputs = [case[name] for name in sorted(case) if name.startswith("in")]
    wanted = [case[name] for name in sorted(case) if name.startswith("out")]
    with torch.no_grad():
        outputs = model(*inputs)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    assert len(outputs) == len(wanted)
    for got, want in zip(outputs, wanted):
        assert (got - want).norm() <= 1e-6 * want.norm(), (got - want).norm()
print("same")
"""


class Vgg(nn.Sequential):
    """Top-level numbers with gaps, pooling, dropout modules, a flatten over H × W > 1, a batch-norm without affine."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8, affine=False),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, (3, 1), padding=(1, 0)),
            nn.Dropout2d(0.3),
            nn.AvgPool2d(3, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(12 * 4, 20),
            nn.Dropout(0.4, inplace=True),
            nn.Linear(20, 10),
        )


class Everything(nn.Module):
    """Views, writes through views, splits, functional weights, a shared layer, unread tensors, two inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding="same")
        self.blocks = nn.ModuleDict({"depth-wise": nn.Conv2d(8, 8, 3, padding=1, groups=8), "norm": nn.GroupNorm(2, 8)})
        self.shared = nn.Conv2d(16, 16, 1, bias=False)
        self.kernel = nn.Parameter(torch.randn(16, 1, 3, 3) / 3)
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("offset", torch.randn(16, 1, 1))
        self.register_buffer("order", torch.arange(15, -1, -1))
        self.up = nn.ConvTranspose2d(16, 6, 2, stride=2)
        self.prelu = nn.PReLU(6)
        self.norm = nn.LayerNorm(16)
        self.unread = nn.Linear(3, 2)
        self.head = nn.Linear(16, 5)
        self.attend = nn.Linear(16, 48)

    def forward(self, image, mask):
        x = self.stem(image) * torch.sigmoid(mask)
        left, right = x.chunk(2, dim=1)
        right = self.blocks["norm"](self.blocks["depth-wise"](right))
        x = torch.cat([left - 1, 2 * right], dim=1)[:, self.order] + self.offset
        x[:, 3] *= 0.5
        x = self.shared(F.leaky_relu(self.shared(x), 0.2)) ** 2
        x = F.conv2d(x, self.kernel, padding=1, groups=16) / (1 + self.scalar)
        x = F.pad(x[:, :, 1:-1, ::2], (1, 0, 0, 1), value=0.5)
        n, c, h, w = x.shape
        shuffled = x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        tokens = self.norm(shuffled.flatten(2).permute(0, 2, 1))
        q, k, v = self.attend(tokens).view(n, h * w, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c)
        y = F.dropout(F.gelu(y + tokens), 0.25, self.training)
        picture = self.prelu(self.up(shuffled.clamp(min=-1.0)))
        picture = F.interpolate(F.pixel_shuffle(picture[:, :4], 2), scale_factor=2.0)
        picture = torch.roll(picture, 1, 2)
        return F.log_softmax(self.head(y.mean(1)), dim=1), picture.amax((2, 3), keepdim=True)


def resnet() -> Network:
    module = build("cifar_resnet", {"depth": 14, "width": 6, "inner_widths": [3, 4, 5, 6, 7, 8]})
    return randomised(module, {"image": (3, 16, 16)})


def vgg() -> Network:
    return randomised(Vgg(), {"x": (3, 8, 8)})


def everything() -> Network:
    return randomised(Everything(), {"image": (3, 8, 8), "mask": (1, 8, 8)})


def randomised(module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> Network:
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.uniform_(0.5, 2)
            layer.running_mean.normal_()
    return Network.from_module(module, shapes)


@pytest.fixture(scope="module", params=[resnet, vgg, everything], ids=lambda build: build.__name__)
def network(request) -> Network:
    return request.param()


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model_py(network, folder / "model.py")
    write_safetensors(network, folder / "model.safetensors", pruned=False)
    return folder


def loaded(folder: Path) -> nn.Module:
    return runpy.run_path(str(folder / "model.py"))["load"](folder / "model.safetensors")


def test_a_fresh_process_with_torch_alone_computes_the_network(network, folder):
    for batch in (1, 5):
        inputs = network.random_inputs(batch=batch, seed=batch)
        case = {f"in{i}": tensor for i, tensor in enumerate(inputs)}
        case |= {f"out{i}": tensor.contiguous() for i, tensor in enumerate(network.run(*inputs))}
        save_file(case, folder / f"case{batch}.safetensors")
    command = [sys.executable, "-I", "-W", "ignore", "-c", CHILD, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.strip() == "same", result.stderr


def test_state_dict_has_exactly_the_networks_names_shapes_and_roles(network, folder):
    model = loaded(folder)
    state = model.state_dict()
    assert {n: (t.shape, t.dtype) for n, t in state.items()} == {
        n: (t.shape, t.dtype) for n, t in network.tensors.items()
    }
    assert {name for name, _ in model.named_parameters()} == network.parameter_names
    for name, tensor in network.tensors.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def test_training_mode_drops_and_normalises_as_the_module_form_does(network, folder):
    ours, generated = to_module(network).train(), loaded(folder).train()
    inputs = network.random_inputs(batch=6, seed=9)
    results = []
    for module in (ours, generated):
        torch.manual_seed(4)
        outputs = module(*[tensor.clone() for tensor in inputs])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.square().mean() for output in outputs).backward()
        results.append((outputs, {n: p.grad for n, p in module.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0], results[1])
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(generated.state_dict()[name], tensor)
    evaluated = network.run(*inputs)[0]
    assert (results[1][0][0] - evaluated).norm() > 1e-2 * evaluated.norm()


def test_formatter_and_linter_are_content(folder):
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["format", "--diff"], ["check", "--select", "E,F,W,I,B,UP,SIM,C4,RUF,PTH"]):
        result = subprocess.run(
            [*ruff, *command, "--isolated", str(folder / "model.py")], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_a_residual_block_reads_as_a_person_would_write_it():
    source = model_source(resnet())
    block = source.split("# layer2.0 -> 12 x 8 x 8\n")[1].split("\n\n")[0]
    assert [line.strip() for line in block.splitlines()] == [
        "y = self.layer2[0].conv1(x)",
        "y = self.layer2[0].bn1(y)",
        "y = F.relu(y)",
        "y = self.layer2[0].conv2(y)",
        "y = self.layer2[0].bn2(y)",
        "x = x[:, :, ::2, ::2]",
        "x = F.pad(x, (0, 0, 0, 0, 3, 3))",
        "x = y + x",
        "x = F.relu(x)",
    ]
    assert "conv1=nn.Conv2d(6, 3, kernel_size=3, padding=1, bias=False)," in source
    assert "input   image: float32 (batch, 3, 16, 16)" in source and "torch.ops" not in source


def test_numbered_layers_become_a_dictionary_and_calls_become_what_a_person_writes():
    source = model_source(vgg())
    assert 'x = self["4"](x)' in source and source.index('"9": nn.Dropout(0.4') < source.index('"10": nn.Linear')
    source = model_source(everything())
    assert 'getattr(self.blocks, "depth-wise")' in source and "x = x.roll((1,), dims=(2,))" in source
    assert "x = x[:, self.order]" in source and "x, y = x.chunk(2, dim=1)" in source
    assert "x = x[:, :, 1:-1, ::2]" in source


class Positions(nn.Module):
    """Tensors that are made on the way: sizes of the batch, numbers in order, powers of them, sizes rounded down."""

    def forward(self, x):
        steps = torch.arange(x.shape[3], dtype=torch.float32)
        waves = torch.sin(steps / 100.0 ** (2 * torch.div(steps, 2, rounding_mode="floor") / 8))
        zeros, marks = torch.zeros(x.shape[0], 1, 8, 8), torch.full((x.shape[0], 1, 1, 8), 0.5)
        return x * waves + zeros + torch.ones(8, 1) * marks + torch.arange(1, 9, dtype=torch.float32)


def test_tensors_that_are_made_on_the_way_are_made_where_the_input_is(tmp_path):
    network = Network.from_module(Positions(), {"picture": (2, 8, 8)})
    write_model_py(network, tmp_path / "model.py")
    source = (tmp_path / "model.py").read_text()
    assert "torch.zeros((batch_size, 1, 8, 8), device=picture.device)" in source and "100.0**" in source
    assert 'torch.device("cpu")' not in source and "torch.ops" not in source
    model = runpy.run_path(str(tmp_path / "model.py"))["Model"]()
    # A device without values: whatever were made elsewhere could not be added to what is there.
    assert model(torch.empty(3, 2, 8, 8, device="meta")).device.type == "meta"


def test_hostile_names_are_data_never_code(tmp_path):
    network = resnet()
    evil = 'x"]\nraise SystemExit("ran")\n"""'
    graph = torch.fx.Graph()
    graph.graph_copy(network.graph, copies := {})
    results = next(node for node in network.graph.nodes if node.op == "output").args[0]
    graph.output(tuple(copies[result] for result in results))
    for node in graph.nodes:
        node.meta = {**node.meta, "path": f"{evil}.0.{evil}"}
    hostile = dataclasses.replace(
        network,
        graph=graph,
        tensors={**network.tensors, evil: torch.ones(2), f"a.{evil}.class": torch.zeros(1)},
        inputs=tuple(dataclasses.replace(spec, name=evil) for spec in network.inputs),
        outputs=tuple(dataclasses.replace(spec, name=evil) for spec in network.outputs),
        architecture=evil,
    )
    write_model_py(hostile, tmp_path / "model.py")
    names = runpy.run_path(str(tmp_path / "model.py"))["Model"]().state_dict()
    assert {evil, f"a.{evil}.class"} <= set(names)


def test_a_module_that_computes_something_else_is_not_delivered(tmp_path, monkeypatch):
    original = forward_module.print_call

    def sabotaged(node, value):
        return "F.adaptive_avg_pool2d(x, 1) * 1.001" if "pool" in node.name else original(node, value)

    monkeypatch.setattr(forward_module, "print_call", sabotaged)
    with pytest.raises(EngineError, match="differs from the network"):
        write_model_py(resnet(), tmp_path / "model.py")


def test_generated_reader_agrees_with_the_library_and_refuses_broken_files(tmp_path):
    tensors = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "flag": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "nothing": torch.empty(0, 4),
    }
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    read = read_safetensors(path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(read[name], tensor, rtol=0, atol=0)
    data = path.read_bytes()
    for broken in (b"", data[:4], data[:40], data[:-1], b"\xff" * 8 + data[8:], data.replace(b"[3,5]", b"[9,5]")):
        path.write_bytes(broken)
        with pytest.raises(ValueError):
            read_safetensors(path)


def test_layout_breaks_only_what_does_not_fit():
    short = Group("f(", ("a", "b"), ")")
    assert render(short, 4) == ["    f(a, b)"]
    middle = Group("function(", ("a" * 40, "b" * 41), ")")
    assert render(middle, 0) == ["function(", "    " + "a" * 40 + ", " + "b" * 41, ")"]
    wide = Group("function(", tuple("item" * 10 for _ in range(3)), ")")
    assert render(wide, 0) == ["function(", *["    " + "item" * 10 + ","] * 3, ")"]
