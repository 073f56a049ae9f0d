"""Chains of a method that removes channels and one that shares kernels, and the trial of one beside the other."""

from __future__ import annotations

import pytest
import torch

from core.budget import Budget, Cap
from core.checkpoint import Checkpoint
from core.engine import compress, propose
from core.errors import EngineError
from core.penni.effort import fitting_macs
from tests.core.recovery_cases import Dying, Killed, digit_requests, trained_network

PENNI = {"type": "penni", "round_to": 4}
MAGNITUDE = {"type": "magnitude"}


@pytest.fixture(scope="module")
def request_for(tmp_path_factory):
    request = digit_requests(tmp_path_factory.mktemp("chain"))
    return lambda *methods, ratio=0.5, **changes: request(methods, Cap("macs", max_ratio=ratio), **changes)


@pytest.mark.parametrize("methods", [(PENNI, MAGNITUDE), (MAGNITUDE, PENNI)])
def test_both_methods_take_their_share_and_the_caps_are_met_as_proposed(request_for, tmp_path, methods):
    request = request_for(*methods)
    proposal = propose(request)
    result = compress(request, tmp_path)
    (constraint,) = result["constraints"]
    assert constraint["met"]
    assert constraint["value"] >= 0.94 * constraint["limit"]
    assert proposal["feasible"]
    assert proposal["predicted"]["macs"] == constraint["value"]
    first, second = result["recovery"]["rewriting"]["chain"]
    assert [first["method"], second["method"]] == [method["type"] for method in methods]
    # Half of the way in equal ratios is 71 % of the MACs.
    assert first["macs"] == pytest.approx(0.5**0.5 * result["baseline"]["macs"], rel=0.05)
    assert second["macs"] == constraint["value"]
    # The masked reference of the cut and the forms of the layers: more than either checks alone.
    assert result["equivalence"]["passed"]
    assert result["equivalence"]["max_relative_error"] <= 1e-5
    assert result["equivalence"]["checked"] > 15
    rows = {row["name"]: row for row in result["layers"]}
    assert any(row["after"]["out"] < row["before"]["out"] for row in rows.values())
    assert result["recovery"]["rewriting"]["two_stage_layers"] > 0


def test_a_cap_on_the_file_is_met_by_a_chain(request_for, tmp_path):
    result = compress(request_for(PENNI, MAGNITUDE, budget=Budget((Cap("size", max_ratio=0.5),))), tmp_path)
    (constraint,) = result["constraints"]
    assert constraint["met"]
    assert constraint["value"] >= 0.85 * constraint["limit"]


def test_a_chain_that_died_in_training_goes_on_to_the_same_network(request_for, tmp_path):
    request = request_for(PENNI, MAGNITUDE, data="labelled", recovery={"epochs": 1, "threads": 1})
    whole = compress(request, tmp_path / "whole")
    assert whole["compressed"]["accuracy"] >= whole["baseline"]["accuracy"] - 0.05
    guard = whole["recovery"]["rewriting"]["guard"]
    assert guard["taken"] == "fitted"
    assert guard["fitted"] > guard["weights_alone"]

    with pytest.raises(Killed):
        compress(request, tmp_path / "first", checkpoint=Dying(tmp_path / "state"))
    result = compress(request, tmp_path / "second", checkpoint=Checkpoint(tmp_path / "state", "request"))
    assert result["recovery"]["training"]["resumed"]
    digests = [
        next(one["sha256"] for one in found["artifacts"] if one["name"] == "model.safetensors")
        for found in (whole, result)
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("methods", "param"),
    [
        ((MAGNITUDE, {"type": "bn_scale"}), "/methods"),
        ((PENNI, PENNI), "/methods"),
        ((PENNI, MAGNITUDE, MAGNITUDE), "/methods"),
        (({"type": "penni", "unit": "coefficient"}, MAGNITUDE), "/methods/0/unit"),
        ((PENNI, {"type": "magnitude", "round_to": 0}), "/methods/1/round_to"),
        ((MAGNITUDE, {"type": "penni", "bases": "many"}), "/methods/1/bases"),
        ((MAGNITUDE, {"type": "penni", "bases": {"nope": 3}}), "/methods/1/bases"),
        ((MAGNITUDE, {"type": "penni", "bases": 3, "energy": 0.9}), "/methods/1/energy"),
    ],
)
def test_other_chains_and_bad_options_of_a_chain_are_refused(request_for, tmp_path, methods, param):
    with pytest.raises(EngineError) as refusal:
        compress(request_for(*methods), tmp_path)
    assert refusal.value.code == "invalid_request"
    assert refusal.value.param == param


@pytest.mark.parametrize("methods", [(PENNI, MAGNITUDE), (MAGNITUDE, PENNI)])
def test_what_a_chain_cannot_reach_is_said_of_the_chain_and_beside_the_original(request_for, methods):
    proposal = propose(request_for(*methods, ratio=0.04))
    error = proposal["error"]
    first, second = (method["type"] for method in methods)
    assert not proposal["feasible"]
    assert error["code"] == "target_infeasible"
    assert error["message"].startswith(f"{first} and then {second} reach no less than macs ")
    assert error["message"].endswith(f"try the other order: {second} first.")
    assert error["details"]["costs"]["macs"] == proposal["baseline"]["macs"]
    # What is called the smallest is what would be delivered as the nearest, without the channels that die in it.
    assert error["details"]["smallest"]["macs"] == proposal["predicted"]["macs"]


def test_a_chain_whose_first_half_leaves_no_kernels_says_what_it_comes_to(request_for, tmp_path):
    with pytest.raises(EngineError) as refusal:
        compress(request_for(MAGNITUDE, PENNI, ratio=0.001), tmp_path)
    details = refusal.value.details
    assert refusal.value.code == "target_infeasible"
    assert 0.001 * details["costs"]["macs"] < details["smallest"]["macs"] < 0.5 * details["costs"]["macs"]


def test_an_aim_of_a_chain_is_a_share_of_the_original(request_for, tmp_path):
    sharing = {"type": "penni", "unit": "coefficient", "sparse_params": 0.1}
    result = compress(request_for(MAGNITUDE, sharing), tmp_path)
    (aim,) = result["recovery"]["rewriting"]["aims"]
    assert aim["limit"] == int(0.1 * result["baseline"]["params"])
    assert aim["value"] <= aim["limit"]


def test_an_aim_out_of_reach_of_kernels_alone_is_met_once_channels_leave(request_for, tmp_path):
    # Shared kernels alone come to 5 % of the parameters; the cap on MACs asks for next to nothing.
    result = compress(request_for({**PENNI, "sparse_params": 0.04}, MAGNITUDE, ratio=0.9), tmp_path)
    (aim,) = result["recovery"]["rewriting"]["aims"]
    assert aim["limit"] == int(0.04 * result["baseline"]["params"])
    assert 0.9 * aim["limit"] <= aim["value"] == result["sparse"]["params"] <= aim["limit"]
    assert result["met"]


def test_an_aim_out_of_reach_of_a_chain_is_refused_with_what_is_the_least(request_for):
    error = propose(request_for({**PENNI, "sparse_params": 0.001}, MAGNITUDE, ratio=0.9))["error"]
    assert error["code"] == "target_infeasible"
    assert error["message"].startswith("Counted by nonzeros, the least that may be left is params ")


def test_auto_takes_what_held_out_images_say_and_reports_both(request_for, tmp_path):
    request = request_for({"type": "auto"}, data="labelled", ratio=0.3, recovery={"epochs": 0})
    result = compress(request, tmp_path)
    trial = result["recovery"]["trial"]
    assert trial["measure"] == "validation_accuracy"
    better = "penni" if trial["penni"] > trial["magnitude"] else "magnitude"
    assert trial["taken"] == better
    assert ("rewriting" in result["recovery"]) == (better == "penni")
    # What is delivered is no worse on held-out images than either was.
    delivered = result["recovery"]["accuracy"]["after"]["val"]
    assert delivered >= max(trial["penni"], trial["magnitude"]) - 1e-6


@pytest.mark.parametrize(
    ("fails", "error", "reason"),
    [
        ("work", EngineError("equivalence_failed", "The forms do not agree."), "The forms do not agree."),
        ("make", EngineError("equivalence_failed", "The forms do not agree."), "The forms do not agree."),
        ("work", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "too little memory"),
        ("make", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"), "too little memory"),
    ],
)
def test_auto_goes_on_with_channels_where_shared_kernels_fail(
    request_for, tmp_path, monkeypatch, caplog, fails, error, reason
):
    def fail(*_args):
        raise error

    monkeypatch.setattr(f"core.rewriting.Rewriter.{fails}", fail)
    monkeypatch.setattr("core.rivals.AccuracyJudge.no_worse", lambda _judge, value, other: fails == "work")
    request = request_for({"type": "auto"}, data="labelled", ratio=0.3, recovery={"epochs": 0})
    result = compress(request, tmp_path)
    trial = result["recovery"]["trial"]
    assert trial["taken"] == "magnitude"
    assert reason in trial["reason"]
    assert "rewriting" not in result["recovery"]
    assert reason in caplog.text


def test_a_fault_in_the_trial_is_not_taken_for_a_lack_of_memory(request_for, tmp_path, monkeypatch):
    def fail(*_args):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr("core.rewriting.Rewriter.work", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        compress(request_for({"type": "auto"}, data="labelled", ratio=0.3, recovery={"epochs": 0}), tmp_path)


def test_auto_tries_nothing_else_where_removing_channels_loses_next_to_nothing(request_for, tmp_path):
    result = compress(request_for({"type": "auto"}, data="labelled", recovery={"epochs": 0}), tmp_path)
    trial = result["recovery"]["trial"]
    assert trial["taken"] == "magnitude"
    assert trial["magnitude"] >= result["recovery"]["accuracy"]["original"]["val"] - 0.01
    assert "penni" not in trial


def test_a_trial_that_would_take_too_long_is_left_out_and_says_so(request_for, tmp_path, monkeypatch):
    network = trained_network()
    assert fitting_macs(network, 512, 3) > fitting_macs(network, 16, 3)
    assert fitting_macs(network, 16, 6) > fitting_macs(network, 16, 3)
    monkeypatch.setattr("core.rivals.TRIAL_MACS", {"cpu": 1.0})
    request = request_for({"type": "auto"}, data="labelled", recovery={"epochs": 0})
    trial = compress(request, tmp_path)["recovery"]["trial"]
    assert trial["taken"] == "magnitude"
    assert "longer than a trial may" in trial["reason"]
