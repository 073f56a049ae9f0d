"""The pipeline as a whole: what it promises about budgets, accuracy floors and its own counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import core.candidate as candidate
import core.choice as choice
import core.cut as cut
from core.analysis import profile
from core.architectures import build
from core.budget import Budget, Cap
from core.engine import CompressionRequest, compress
from core.errors import EngineError
from core.intake import load_network
from core.measure import independent_costs
from examples.demo import digits, train

ARGS = {"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10}


@pytest.fixture(scope="module")
def request_with_data(tmp_path_factory) -> CompressionRequest:
    """Digits at 30 % of the FLOPs without training, so that accuracy is certain to fall."""
    folder = tmp_path_factory.mktemp("engine")
    images, labels, split = digits()
    torch.manual_seed(0)
    save_file(train(images, labels, split, ARGS), folder / "model.safetensors")
    np.savez(folder / "labelled.npz", images=images, labels=labels, split=split)
    np.savez(folder / "unlabelled.npz", images=images, split=split)
    return CompressionRequest(
        folder / "model.safetensors",
        Budget((Cap("flops", max_ratio=0.3),)),
        architecture="cifar_resnet",
        architecture_args=ARGS,
        input_shape=(1, 8, 8),
        dataset_path=folder / "labelled.npz",
        recovery={"epochs": 0},
        outputs=("safetensors", "report"),
    )


def test_floor_that_the_budget_breaks_fails_and_says_by_how_much(request_with_data, tmp_path):
    with pytest.raises(EngineError) as failed:
        compress(dataclasses.replace(request_with_data, max_accuracy_drop=0.01), tmp_path)
    assert failed.value.code == "accuracy_floor"
    assert failed.value.details["accuracy_drop"] > 0.01
    assert list(tmp_path.iterdir()) == []


def test_best_effort_keeps_the_floor_and_relaxes_the_budget(request_with_data, tmp_path):
    floor = dataclasses.replace(
        request_with_data,
        budget=Budget((Cap("flops", max_ratio=0.12),)),
        max_accuracy_drop=0.02,
        on_unmet="best_effort",
    )
    result = compress(floor, tmp_path)
    validation = result["recovery"]["accuracy"]
    assert validation["original"]["val"] - validation["after"]["val"] <= 0.02
    assert result["met"] is False
    assert result["constraints"][0]["value"] > result["constraints"][0]["limit"]


def test_a_floor_that_is_missed_for_more_than_the_budget_says_so(request_with_data, tmp_path, monkeypatch):
    monkeypatch.setattr(candidate, "RELAXATIONS", (1.0,))
    one_value = {"quantizer": "uq", "levels": 1, "epochs": 0}
    job = dataclasses.replace(request_with_data, encoding=one_value, max_accuracy_drop=0.01, on_unmet="best_effort")
    with pytest.raises(EngineError, match="relaxed to what the original costs, validation accuracy still") as failed:
        compress(job, tmp_path)
    assert failed.value.code == "accuracy_floor"
    assert "on_unmet" not in failed.value.message


def test_floor_without_labels_is_refused_before_any_work(request_with_data, tmp_path):
    unlabelled = request_with_data.dataset_path.with_name("unlabelled.npz")
    for path in (None, unlabelled):
        with pytest.raises(EngineError, match="labelled dataset") as refused:
            compress(dataclasses.replace(request_with_data, dataset_path=path, max_accuracy_drop=0.5), tmp_path)
        assert refused.value.param == "/accuracy"


def test_unlabelled_images_recover_without_claiming_an_accuracy(request_with_data, tmp_path):
    unlabelled = request_with_data.dataset_path.with_name("unlabelled.npz")
    result = compress(dataclasses.replace(request_with_data, dataset_path=unlabelled), tmp_path)
    assert result["met"] and result["compressed"]["accuracy"] is None


def test_stages_are_told_in_order(request_with_data, tmp_path):
    told: list[str] = []
    compress(request_with_data, tmp_path, lambda event: told.append(event.stage))
    assert list(dict.fromkeys(told)) == ["intake", "profile", "plan", "apply", "verify", "recover", "deliver"]


def test_a_surgery_that_is_wrong_is_never_delivered(request_with_data, tmp_path, monkeypatch):
    def sabotaged(network, analysis, keep):
        pruned = right(network, analysis, keep)
        weight = pruned.tensors["layer2.0.conv2.weight"].clone()
        weight[[0, 1]] = weight[[1, 0]]
        return pruned.with_tensors({**pruned.tensors, "layer2.0.conv2.weight": weight})

    right = cut.apply
    monkeypatch.setattr(cut, "apply", sabotaged)
    with pytest.raises(EngineError) as failed:
        compress(request_with_data, tmp_path)
    assert failed.value.code == "equivalence_failed"
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_that_is_wrong_is_never_delivered(request_with_data, tmp_path, monkeypatch):
    right = choice.plan_widths

    def optimistic(*arguments, **options):
        plan = right(*arguments, **options)
        return dataclasses.replace(plan, predicted=dataclasses.replace(plan.predicted, macs=plan.predicted.macs - 1))

    monkeypatch.setattr(choice, "plan_widths", optimistic)
    with pytest.raises(EngineError, match="another count"):
        compress(request_with_data, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_independent_count_agrees_with_the_profile(request_with_data):
    for depth in (8, 20):
        network = load_network(request_with_data.model_path, architecture="cifar_resnet", input_shape=(1, 8, 8))
        if depth == 20:
            network = type(network).from_module(build("cifar_resnet20", {}), {"input": (3, 32, 32)})
        assert independent_costs(network) == profile(network).costs


def test_gpu_that_is_not_there_is_said(request_with_data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="this worker has none"):
        compress(dataclasses.replace(request_with_data, device="gpu"), tmp_path)


def test_training_that_nothing_can_be_learned_from_is_refused(request_with_data, tmp_path):
    unlabelled = request_with_data.dataset_path.with_name("unlabelled.npz")
    for path, recovery, param in (
        (None, {"epochs": 3}, "/recovery"),
        (unlabelled, {"distill": False}, "/recovery/distill"),
        (unlabelled, {"label_smoothing": 0.1}, "/recovery/label_smoothing"),
    ):
        with pytest.raises(EngineError, match=r"images|labels") as refused:
            compress(dataclasses.replace(request_with_data, dataset_path=path, recovery=recovery), tmp_path)
        assert (refused.value.code, refused.value.param) == ("dataset_invalid", param)
    with pytest.raises(EngineError, match=r"goes from 0 to 0\.9") as refused:
        compress(dataclasses.replace(request_with_data, recovery={"cutout": 2.0}), tmp_path)
    assert (refused.value.code, refused.value.param) == ("invalid_request", "/recovery/cutout")
