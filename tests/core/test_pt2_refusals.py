"""What a `.pt2` file may hold that is no network of tensors [batch, …] is refused by name, never read past."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import EngineError
from core.intake import load_network
from core.intake.pt2 import operators
from tests.core.pt2_cases import Small, saved

PROGRAM = "models/model.json"


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same archive with another graph."""
    with zipfile.ZipFile(path) as archive:
        entries = {one.filename: archive.read(one) for one in archive.infolist()}
    name = next(name for name in entries if name.endswith(PROGRAM))
    document = json.loads(entries[name])
    change(document["graph_module"]["graph"])
    entries[name] = json.dumps(document).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for one, data in entries.items():
            archive.writestr(one, data)
    return path


def refusal(path: Path) -> EngineError:
    with pytest.raises(EngineError) as caught:
        load_network(path, architecture=None)
    return caught.value


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (lambda features: features.mean((0, 2, 3)), "no axis of images"),
        (lambda features: features.mean((2, 3)).transpose(0, 1), "its images along axis 1"),
    ],
)
def test_an_output_that_is_not_batch_first_is_refused_with_its_shapes(after, said, tmp_path):
    error = refusal(saved(Small(after), tmp_path / "model.pt2"))
    assert error.code == "unsupported_format" and said in error.message and "outputs are [batch, …]" in error.message


def test_outputs_that_are_no_tensors_are_named_all_at_once(tmp_path):
    path = saved(
        Small(lambda features: {"scores": features.mean((2, 3)), "version": 3, "mask": None}), tmp_path / "model.pt2"
    )
    error = refusal(path)
    assert error.code == "unsupported_format"
    assert "'version' (int)" in error.message and "'mask' (none)" in error.message


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_autocast_that_is_on_is_refused_for_every_device(device, tmp_path):
    def after(features):
        with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
            return features @ features.transpose(2, 3)

    def move(graph):
        (scope,) = (node for node in graph["nodes"] if "autocast" in node["target"])
        scope["inputs"][0]["arg"] = {"as_string": device}

    error = refusal(rewritten(saved(Small(after), tmp_path / "model.pt2"), move))
    assert error.code == "unsupported_format" and f"torch.autocast('{device}')" in error.message


def test_autocast_that_is_off_is_read(tmp_path):
    def after(features):
        with torch.autocast(device_type="cpu", enabled=False):
            return features.mean((2, 3))

    assert load_network(saved(Small(after), tmp_path / "model.pt2"), architecture=None).outputs[0].shape == (4,)


def test_more_nodes_than_any_network_has_are_refused_before_one_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(operators, "MAX_NODES", 50)
    path = saved(Small(lambda features: features.mean((2, 3))), tmp_path / "model.pt2")
    load_network(path, architecture=None)
    error = refusal(rewritten(path, lambda graph: graph["nodes"].extend([graph["nodes"][-1]] * 60)))
    assert error.code == "unsafe_model" and "more than 50 nodes" in error.message


@pytest.mark.parametrize("depth", [operators.MAX_SCOPES + 1, 100])
def test_scopes_within_scopes_are_refused_before_one_is_entered(depth, tmp_path):
    def nest(graph):
        inside = {"nodes": [], "inputs": [], "outputs": [], "tensor_values": {}}
        for _ in range(depth):
            arguments = [{"as_bool": False}, {"as_graph": {"name": "inside", "graph": inside}}]
            inputs = [{"name": "", "arg": argument, "kind": 1} for argument in arguments]
            call = {"target": operators.SET_GRADIENT, "inputs": inputs, "outputs": [], "metadata": {}}
            inside = {"nodes": [call], "inputs": [], "outputs": [], "tensor_values": {}}
        graph["nodes"] += inside["nodes"]

    path = rewritten(saved(Small(lambda features: features.mean((2, 3))), tmp_path / "model.pt2"), nest)
    error = refusal(path)
    assert error.code == "unsafe_model" and f"more than {operators.MAX_SCOPES} deep" in error.message
