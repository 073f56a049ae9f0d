"""Magnitude scores are the norms of the coupled slices, and a method's options are checked by name."""

from __future__ import annotations

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn

from core.analysis import analyse
from core.budget import Budget, Cap
from core.errors import EngineError
from core.methods import Method, get_method, method_infos
from core.network import Network
from core.request import CompressionRequest


class Chain(nn.Module):
    """conv a → batch-norm → ReLU → conv b → mean → linear: channel c of `a` is row c of a and column c of b."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.b(torch.relu(self.norm(self.a(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    network = Network.from_module(Chain(), {"input": (3, 8, 8)})
    return network, analyse(network)


@pytest.mark.parametrize("norm", [1, 2])
def test_score_is_the_norm_over_the_filter_and_every_slice_that_reads_it(chain, norm):
    network, analysis = chain
    method = get_method("magnitude")
    scores = method.scores(network, analysis, method.config({"norm": norm}), 0)
    a, b, head = (network.tensors[f"{name}.weight"].double() for name in ("a", "b", "head"))
    expected = {
        "a": [torch.cat([a[c].ravel(), b[:, c].ravel()]).norm(norm).item() for c in range(6)],
        "b": [torch.cat([b[c].ravel(), head[:, c].ravel()]).norm(norm).item() for c in range(8)],
    }
    for group in analysis.groups:
        np.testing.assert_allclose(sorted(scores[group.components]), sorted(expected[group.label]), rtol=1e-6)


class Residual(nn.Module):
    """Two convolutions into one sum: channel c of both lives or dies as one component."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.depthwise(self.a(x) + self.b(x)).mean((2, 3)))


def test_tied_channels_are_scored_by_all_their_slices_together():
    torch.manual_seed(0)
    network = Network.from_module(Residual(), {"input": (3, 8, 8)})
    analysis = analyse(network)
    method = get_method("magnitude")
    scores = method.scores(network, analysis, method.config({}), 0)
    weights = {name: network.tensors[f"{name}.weight"].double() for name in ("a", "b", "depthwise", "head")}
    expected = [
        torch.cat([*(weights[n][c].ravel() for n in ("a", "b", "depthwise")), weights["head"][:, c]]).norm().item()
        for c in range(6)
    ]
    (group,) = analysis.groups
    np.testing.assert_allclose(sorted(scores[group.components]), sorted(expected), rtol=1e-6)


def test_whole_numbers_may_be_written_as_json_writes_them():
    config = get_method("magnitude").config({"round_to": 8.0, "norm": 1})
    assert (config.round_to, config.norm, config.min_channels) == (8, 1, None)
    assert isinstance(config.round_to, int)


def test_batch_norm_scale_has_no_part_in_the_score(chain):
    network, analysis = chain
    method = get_method("auto")
    before = method.scores(network, analysis, method.config({}), 0)
    louder = network.with_tensors({**network.tensors, "norm.weight": network.tensors["norm.weight"] * 100})
    np.testing.assert_array_equal(before, method.scores(louder, analysis, method.config({}), 0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rond_to": 8}, "rond_to"),
        ({"norm": 3}, "must be 1 or 2"),
        ({"round_to": 0}, "from 1 to 64"),
        ({"min_channels": 2.5}, "at least 1"),
        ({"norm": True}, "True"),
    ],
)
def test_bad_option_is_named(options, words):
    with pytest.raises(EngineError, match=words) as refusal:
        get_method("magnitude").config(options)
    assert refusal.value.param == f"/methods/0/{next(iter(options))}"


def test_unknown_method_suggests_the_nearest():
    with pytest.raises(EngineError, match="magnitude"):
        get_method("magnitud")


def test_catalogue_tells_what_a_method_does_and_which_options_need_labels():
    infos = {info.type: info for info in method_infos()}
    assert {name for name, info in infos.items() if info.kind == "rewrites_layers"} == {"penni"}
    assert {info.kind for info in infos.values()} == {"removes_channels", "rewrites_layers"}
    for name, info in infos.items():
        for option, schema in info.schema["properties"].items():
            for value in schema.get("x-needs-labels", []):
                assert get_method(name).by_labels(get_method(name).config({option: value})) == option
    assert infos["penni"].schema["properties"]["recipe"]["x-needs-labels"] == ["paper"]


def test_schemas_accept_the_defaults_and_refuse_what_config_refuses():
    for info in method_infos():
        jsonschema.Draft202012Validator.check_schema(info.schema)
        defaults = {name: one["default"] for name, one in info.schema["properties"].items() if "default" in one}
        limits = [{"name": "a", "freeze": True}, {"name": "b", "min": 2, "max": 4}]
        method, given = get_method(info.type), [defaults, {"round_to": 8}]
        if isinstance(method, Method):
            given.append({"round_to": 8, "ranking": "per_layer", "survivors": "never", "layers": limits})
        for options in given:
            jsonschema.validate({"type": info.type, **options}, info.schema)
            config = method.config(options)
            if isinstance(method, Method):
                method.plan_options(config)
        for bad in (
            {"rond_to": 8},
            {"round_to": 0},
            {"ranking": "local"},
            {"layers": [{"name": "a"}]},
            {"type": "other"},
        ):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({"type": info.type, **bad}, info.schema)


@pytest.mark.parametrize(
    ("layers", "param", "words"),
    [
        ([{"name": "a"}], "/methods/0/layers/0", "freeze alone, or min and max"),
        ([{"name": "a", "freeze": True, "min": 3}], "/methods/0/layers/0", "freeze alone, or min and max"),
        ([{"name": "a", "freeze": False}], "/methods/0/layers/0/freeze", "must be true"),
        ([{"name": "a", "min": 1}, {"name": "b", "mix": 1}], "/methods/0/layers/1", "name, freeze, min, max"),
        ([{"name": "a", "min": 0}], "/methods/0/layers/0/min", "at least 1"),
        ([{"name": "", "min": 2}], "/methods/0/layers/0/name", "must be a text"),
        ([{"name": "a", "min": 5, "max": 4}], "/methods/0/layers/0", "min 5 is above max 4"),
        ("a", "/methods/0/layers", "must be a list"),
    ],
)
def test_bad_limits_of_a_layer_are_pointed_at(layers, param, words):
    method = get_method("magnitude")
    with pytest.raises(EngineError, match=words) as refusal:
        method.plan_options(method.config({"layers": layers}))
    assert (refusal.value.code, refusal.value.param) == ("invalid_request", param)


@pytest.mark.parametrize("count", [0, 3])
def test_a_run_takes_one_method_or_two_and_ignores_none(tmp_path, count):
    with pytest.raises(EngineError, match=f"{count} entries") as refusal:
        CompressionRequest(
            tmp_path / "model.safetensors",
            Budget((Cap("macs", max_ratio=0.5),)),
            methods=({"type": "magnitude"},) * count,
        )
    assert refusal.value.param == "/methods"
