"""PENNI through the whole pipeline, on a residual network that knows the digits."""

from __future__ import annotations

import dataclasses
import runpy

import onnx
import pytest
import torch

from core.analysis import profile
from core.budget import Budget, Cap, Constraint
from core.checkpoint import Checkpoint
from core.engine import compress, propose
from core.errors import EngineError
from core.methods import get_method
from core.network import Network
from core.penni.bases import Bases
from core.penni.decomposition import decompose
from core.penni.fitting import KernelSolver
from core.penni.pruning import Pruning
from core.penni.reduction import reduce_columns
from core.penni.rewriting import executable, trainable
from core.penni.sites import sites
from core.recovery import load_dataset
from core.recovery.evaluation import accuracy
from core.recovery.refit import refit
from tests.core.penni_cases import PLAIN_OPERATORS, Chain, network_of, seeded
from tests.core.recovery_cases import Dying, Killed, digit_requests, digits, save_digits, trained_network


@pytest.fixture(scope="module")
def request_for(tmp_path_factory):
    request = digit_requests(tmp_path_factory.mktemp("penni"))
    alone = ({"type": "penni", "round_to": 4},)
    return lambda cap, data=None, methods=alone, **changes: request(methods, cap, data, **changes)


def images_of(folder, count: int) -> tuple[torch.Tensor, object]:
    dataset = load_dataset(save_digits(folder), seed=0)
    return dataset.prepare(dataset.train.sample(count).images), dataset


@pytest.mark.parametrize(
    "cap",
    [
        Cap("macs", max_ratio=0.55),
        Cap("flops", max_ratio=0.7),
        Cap("params", max_ratio=0.4),
        Cap("memory", max_ratio=0.5, kind="weights"),
        Cap("size", max_ratio=0.6),
    ],
)
def test_every_counted_cap_is_met_and_used(request_for, tmp_path, cap):
    result = compress(request_for(cap), tmp_path)
    (constraint,) = result["constraints"]
    assert constraint["met"]
    assert constraint["value"] >= 0.97 * constraint["limit"]
    assert result["equivalence"]["passed"]
    assert result["equivalence"]["max_relative_error"] <= 1e-5
    assert result["equivalence"]["checked"] > 1
    assert result["sparse"]["params"] <= result["compressed"]["params"]


def test_labelled_images_train_it_and_the_delivered_files_say_the_same(request_for, tmp_path):
    outputs = ("onnx", "safetensors", "report")
    result = compress(
        request_for(Cap("macs", max_ratio=0.55), "labelled", recovery={"epochs": 2}, outputs=outputs), tmp_path
    )
    assert result["compressed"]["accuracy"] >= result["baseline"]["accuracy"] - 0.03
    assert result["recovery"]["rewriting"]["method"] == "penni"
    assert result["recovery"]["rewriting"]["columns"] < result["recovery"]["rewriting"]["columns_before"]
    rows = {row["name"]: row for row in result["layers"]}
    row = rows["layer3.0.conv2"]
    assert row["before"]["out"] == row["after"]["out"] == 32
    assert row["after"]["macs"] < row["before"]["macs"]
    assert {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node} <= PLAIN_OPERATORS
    model = runpy.run_path(str(tmp_path / "model.py"))["load"](tmp_path / "model.safetensors")
    names = set(model.state_dict())
    assert {"layer3.0.conv2.basis", "layer3.0.conv2.coefficients"} <= names
    assert "layer3.0.conv2.weight" not in names
    images, labels, split = digits()
    test = split == "test"
    with torch.no_grad():
        found = model(torch.from_numpy(images[test])[:, None].float() / 255).argmax(dim=1).numpy()
    assert (found == labels[test]).mean() == pytest.approx(result["compressed"]["accuracy"], abs=1e-9)


def test_what_a_refusal_calls_the_smallest_is_reached_with_images_too(request_for, tmp_path):
    with pytest.raises(EngineError) as refusal:
        compress(request_for(Cap("macs", max_ratio=0.001)), tmp_path)
    least = refusal.value.details["smallest"]["macs"]
    result = compress(request_for(Cap("macs", maximum=least), "labelled", recovery={"epochs": 0}), tmp_path)
    assert result["met"] and result["compressed"]["macs"] <= least


def test_a_run_that_died_in_training_does_not_fit_again(request_for, tmp_path, monkeypatch):
    request = request_for(Cap("macs", max_ratio=0.55), "labelled", recovery={"epochs": 2, "threads": 1})
    whole = compress(request, tmp_path / "whole", checkpoint=Checkpoint(tmp_path / "whole_state", "request"))

    with pytest.raises(Killed):
        compress(request, tmp_path / "first", checkpoint=Dying(tmp_path / "state"))
    told = []
    monkeypatch.setattr("core.penni.reduction.Program.fitted", None)
    checkpoint = Checkpoint(tmp_path / "state", "request", resumed=lambda *about: told.append(about))
    result = compress(request, tmp_path / "second", checkpoint=checkpoint)
    assert told == [("recover_0/training", 1)]
    assert result["recovery"]["rewriting"] == whole["recovery"]["rewriting"]
    digests = [{one["name"]: one["sha256"] for one in found["artifacts"]} for found in (whole, result)]
    assert digests[0]["model.safetensors"] == digests[1]["model.safetensors"]


def test_images_without_labels_keep_what_weights_alone_lose(tmp_path):
    original = trained_network()
    images, dataset = images_of(tmp_path, 256)
    constraints = Budget((Cap("macs", max_ratio=0.5),)).constraints(profile(original).costs)
    found = {}
    for name, given in (("fitted", images), ("weights alone", None)):
        reduced = reduce_columns(original, Pruning(constraints, round_to=4), given)
        delivered = executable(reduced.network, trainable(reduced.network, reduced.layers), reduced.layers)
        assert profile(delivered).costs == dataclasses.replace(reduced.costs, size_bytes=None)
        found[name] = accuracy(delivered, dataset.test, dataset)
    whole = accuracy(original, dataset.test, dataset)
    assert found["fitted"] >= whole - 0.04
    assert found["fitted"] > found["weights alone"]


def test_what_cannot_be_reached_is_refused_with_the_smallest_that_can(request_for, tmp_path):
    with pytest.raises(EngineError) as refusal:
        compress(request_for(Cap("macs", max_ratio=0.02)), tmp_path)
    assert refusal.value.code == "target_infeasible"
    smallest = refusal.value.details["smallest"]["macs"]
    assert refusal.value.details["constraints"][0]["value"] == smallest
    result = compress(request_for(Cap("macs", maximum=smallest)), tmp_path)
    assert result["compressed"]["macs"] == smallest
    nearest = compress(request_for(Cap("macs", max_ratio=0.02), on_unmet="best_effort"), tmp_path)
    assert not nearest["met"]
    assert nearest["compressed"]["macs"] == smallest


def test_the_nearest_that_is_fitted_to_images_is_no_larger_than_without(tmp_path):
    images, _ = images_of(tmp_path, 48)
    original = trained_network()
    caps = Budget((Cap("macs", max_ratio=0.02),)).constraints(profile(original).costs)
    alone, fitted = (
        reduce_columns(original, Pruning(caps, round_to=4), seen, nearest=True).costs.macs for seen in (None, images)
    )
    assert fitted <= alone


def test_a_proposal_has_the_exact_costs_of_what_weights_alone_give(request_for, tmp_path):
    request = request_for(Cap("macs", max_ratio=0.55))
    proposal = propose(request)
    assert proposal["feasible"]
    result = compress(request, tmp_path)
    for figure in ("params", "macs", "peak_activation_bytes"):
        assert proposal["predicted"][figure] == result["compressed"][figure]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"plan": {"layers": [{"name": "conv1", "out": 4}]}}, "/plan"),
        ({"budget": Budget((Cap("latency_ms", max_ratio=0.5),))}, "/budget/latency_ms"),
        ({"methods": ({"type": "penni", "bases": "many"},)}, "/methods/0/bases"),
        ({"methods": ({"type": "penni", "min_channels": 4},)}, "/methods/0/min_channels"),
    ],
)
def test_what_the_method_cannot_serve_is_named(request_for, tmp_path, changes, param):
    with pytest.raises(EngineError) as refusal:
        compress(request_for(Cap("macs", max_ratio=0.5), **changes), tmp_path)
    assert refusal.value.code == "invalid_request"
    assert refusal.value.param == param


def test_a_network_without_kernels_to_share_is_refused(tmp_path):
    network = Network.from_module(
        torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1, groups=2), torch.nn.Conv2d(8, 8, 3, groups=8)), {"x": (8, 6, 6)}
    )
    constraints = Budget((Cap("macs", max_ratio=0.5),)).constraints(profile(network).costs)
    with pytest.raises(EngineError, match="no convolution whose kernels could be shared") as refusal:
        reduce_columns(network, Pruning(constraints), None)
    assert refusal.value.code == "target_infeasible"


def test_a_number_of_kernels_beside_an_energy_is_refused():
    with pytest.raises(EngineError, match="bases says 3") as refusal:
        get_method("penni").config({"energy": 0.9, "bases": 3})
    assert (refusal.value.code, refusal.value.param) == ("invalid_request", "/methods/0/energy")


def test_the_options_decide_how_many_kernels_a_layer_starts_with():
    config = get_method("penni").config({"bases": 3})
    assert config.start.count == 3
    assert get_method("penni").config({"energy": 0.9}).start.energy == 0.9
    both = get_method("penni").config({"energy": 0.9, "bases": {"conv1": 2}}).start
    assert (both.energy, both.layers) == (0.9, {"conv1": 2})
    original = trained_network()
    constraints = Budget((Cap("params", max_ratio=0.9),)).constraints(profile(original).costs)
    reduced = reduce_columns(original, Pruning(constraints, bases=config.start), None)
    assert set(reduced.report["kernels"].values()) == {3}


@pytest.mark.parametrize("bases", [Bases(), Bases(2), Bases(energy=0.5), Bases(layers={"second": 1})])
def test_a_network_within_its_caps_stays_as_it_is_however_few_kernels_are_asked_for(bases):
    original = network_of(Chain())
    constraints = [Constraint("macs", None, profile(original).costs.macs), Constraint("size", None, 10**6)]
    reduced = reduce_columns(original, Pruning(constraints, bases=bases), None)
    assert not reduced.layers
    assert all(torch.equal(tensor, original.tensors[name]) for name, tensor in reduced.network.tensors.items())


def test_the_fit_is_least_squares_on_the_columns_that_are_left_and_alternation_only_helps():
    generator = torch.Generator().manual_seed(0)
    module = seeded(torch.nn.Conv2d(6, 8, 3, padding=1)).requires_grad_(False)
    network = Network.from_module(module, {"x": (6, 7, 7)})
    (site,) = sites(network)
    # Neighbouring pixels and channels that have much in common, as inside a network; white noise leaves nothing to fit.
    noise = torch.randn(128, 6, 9, 9, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(noise + 2 * noise.mean(dim=1, keepdim=True), 3, stride=1)
    images = torch.relu(smooth + 0.1)
    live = torch.rand(6, 4, generator=generator) < 0.6
    start = decompose(network.tensors["weight"], 4).with_columns(live)
    compressed = network.with_tensors({**network.tensors, "weight": start.weight()})
    wanted = network.run(images)[0]

    def error(sweeps: int) -> float:
        solver = KernelSolver(start, sweeps)
        found = refit(compressed, network, images, kept={}, solvers={site.weight: solver})
        assert torch.equal(solver.shared.live, live)
        assert torch.allclose(solver.shared.basis.norm(dim=1), torch.ones(4), atol=1e-5)
        return float((found.network.run(images)[0] - wanted).norm() / wanted.norm())

    once, alternating = error(0), error(4)
    maps = [
        torch.nn.functional.conv2d(images[:, c : c + 1], start.basis[b].view(1, 1, 3, 3), padding=1)
        for c, b in live.nonzero()
    ]
    design = torch.cat([torch.stack(maps, -1).flatten(0, 3), torch.ones(128 * 49, 1)], dim=1).double()
    target = wanted.permute(0, 2, 3, 1).reshape(-1, 8).double()
    best = design @ torch.linalg.lstsq(design, target).solution - target
    assert once == pytest.approx(float(best.norm() / target.norm()), rel=1e-2)
    assert alternating < once
    assert once < float((compressed.run(images)[0] - wanted).norm() / wanted.norm())
