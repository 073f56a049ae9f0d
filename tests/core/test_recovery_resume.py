"""Training that was interrupted at any step goes on to the very weights that it would have had."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from core.checkpoint import Checkpoint
from core.network import Network
from core.recovery import RecoveryConfig, load_dataset, recover
from core.recovery.training import Trainer
from tests.core.recovery_cases import (
    NEVER,
    Dying,
    Killed,
    digits,
    pruned_and_kept,
    pruned_network,
    save_digits,
    trained_network,
)

OPTIONS = {
    "plain": {},
    "everything": {
        "optimizer": "adamw",
        "schedule": "one_cycle",
        "ema_decay": 0.99,
        "cutout": 0.3,
        "mixup": 0.4,
        "label_smoothing": 0.1,
        "gradient_clip": 1.0,
        "patience": 5,
        "precision": "bfloat16",
    },
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return load_dataset(save_digits(tmp_path_factory.mktemp("labelled")))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    images, _, split = digits()
    path = tmp_path_factory.mktemp("unlabelled") / "digits.npz"
    np.savez(path, x=images, split=split)
    return load_dataset(path)


def run(dataset, checkpoint=None, network=None, original=None, kept=None, **config):
    return recover(
        network or pruned_network(),
        original or trained_network(),
        dataset,
        RecoveryConfig(**{"epochs": 2, "threads": 1, **config}),
        kept=pruned_and_kept()[1] if kept is None else kept,
        seed=3,
        checkpoint=checkpoint,
    )


def same(one, other):
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("step", [1, 13, 19, 27])
def test_an_interrupted_run_gives_the_weights_of_one_that_was_not(labelled, tmp_path, options, step):
    whole = run(labelled, **OPTIONS[options])
    path = tmp_path / "checkpoint"
    with pytest.raises(Killed):
        run(labelled, Dying(path, step), **OPTIONS[options])
    resumed = run(labelled, Checkpoint(path, "request"), **OPTIONS[options])
    assert same(whole.network, resumed.network)
    one, other = (found.details["training"] for found in (whole, resumed))
    assert other["resumed"] and not one["resumed"]
    assert one["curve"] == other["curve"]
    timeless = [
        [{**epoch, "images_per_s": 0, "seconds": 0, "eta_s": 0} for epoch in found["epoch_records"]]
        for found in (one, other)
    ]
    assert timeless[0] == timeless[1] and [epoch["epoch"] for epoch in timeless[0]] == [1, 2]
    assert whole.details["validation_accuracy"] == resumed.details["validation_accuracy"]


def test_training_without_labels_resumes_as_well(unlabelled, tmp_path):
    whole = run(unlabelled)
    with pytest.raises(Killed):
        run(unlabelled, Dying(tmp_path / "checkpoint", 22))
    resumed = run(unlabelled, Checkpoint(tmp_path / "checkpoint", "request"))
    assert same(whole.network, resumed.network) and resumed.details["training"]["resumed"]
    assert whole.details["output_error"] == resumed.details["output_error"]


def test_dropout_goes_on_with_the_same_draws(labelled, tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(216, 10))
    original = Network.from_module(module, {"input": (1, 8, 8)})
    start = original.with_tensors({**original.tensors, "0.weight": original.tensors["0.weight"] * 0.5})
    case = {"network": start, "original": original, "kept": {}, "distill": False}
    whole = run(labelled, **case)
    with pytest.raises(Killed):
        run(labelled, Dying(tmp_path / "checkpoint", 9), **case)
    assert same(whole.network, run(labelled, Checkpoint(tmp_path / "checkpoint", "request"), **case).network)


def test_the_second_try_is_resumed_as_the_second(labelled, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("core.recovery.schedule", fromlist=["x"]).LEARNING_RATES, "sgd", 1e5)
    monkeypatch.setattr("core.recovery.training_attempts.RETRY_FACTOR", 2e-7)
    whole = run(labelled)
    assert whole.details["training"]["retried"]

    class DyingLater(Dying):
        def save(self, step, state):
            if state.values["attempt"] == 1:
                super().save(step, state)

    with pytest.raises(Killed):
        run(labelled, DyingLater(tmp_path / "checkpoint", 11))
    told = []
    resumed = recover(
        pruned_network(),
        trained_network(),
        labelled,
        RecoveryConfig(epochs=2, threads=1),
        kept=pruned_and_kept()[1],
        seed=3,
        checkpoint=Checkpoint(tmp_path / "checkpoint", "request"),
        progress=told.append,
    )
    assert same(whole.network, resumed.network) and resumed.details["training"]["retried"]
    assert [event.epoch.epoch for event in told if event.epoch] == [1, 2]


def test_the_second_try_begins_anew_whatever_was_saved_of_the_first(labelled, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("core.recovery.schedule", fromlist=["x"]).LEARNING_RATES, "sgd", 1e5)
    monkeypatch.setattr("core.recovery.training_attempts.RETRY_FACTOR", 2e-7)
    whole = run(labelled)
    saved = run(labelled, Dying(tmp_path / "checkpoint", NEVER))
    for found in (whole, saved):
        assert found.details["training"]["retried"] and not found.details["training"]["diverged"]
    assert same(whole.network, saved.network)


def test_a_run_out_of_patience_stays_so(labelled, tmp_path):
    # The best epoch is the first: at this rate later ones are no better.
    options = {"epochs": 3, "patience": 1, "learning_rate": 1e-9}
    whole = run(labelled, **options)
    records = whole.details["training"]["epoch_records"]
    assert len(records) == 2
    with pytest.raises(Killed):
        run(labelled, Dying(tmp_path / "checkpoint", 2 * (whole.details["training"]["steps"] // 3)), **options)
    resumed = run(labelled, Checkpoint(tmp_path / "checkpoint", "request"), **options)
    assert len(resumed.details["training"]["epoch_records"]) == 2
    assert same(whole.network, resumed.network)


def test_finished_steps_are_not_done_again(labelled, tmp_path, monkeypatch):
    whole = run(labelled, Checkpoint(tmp_path / "checkpoint", "request"))

    def forbidden(*arguments, **named):
        raise AssertionError("This step was finished.")

    monkeypatch.setattr("core.recovery.pipeline.corrections", forbidden)
    monkeypatch.setattr("core.recovery.training_attempts.fine_tune", forbidden)
    again = run(labelled, Checkpoint(tmp_path / "checkpoint", "request"))
    assert same(whole.network, again.network)
    timeless = [{**found.details, "seconds": 0} for found in (whole, again)]
    assert timeless[0] == timeless[1]


def test_the_run_that_goes_on_says_so_after_its_first_step_and_keeps_the_augmentations(labelled, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        run(labelled, Dying(tmp_path / "checkpoint", 9))
    happened = []

    def forbidden(*arguments, **named):
        raise AssertionError("What the run augments with was chosen.")

    monkeypatch.setattr("core.recovery.training_attempts.choose_augmentation", forbidden)
    learn = Trainer.learn
    monkeypatch.setattr(Trainer, "learn", lambda self, step, *batch: (learn(self, step, *batch), happened.append(step)))
    checkpoint = Checkpoint(tmp_path / "checkpoint", "request", resumed=lambda *about: happened.append(about))
    details = run(labelled, checkpoint).details["training"]
    assert happened[:3] == [9, ("recover/training", 9), 10] and happened.count(("recover/training", 9)) == 1
    assert details["resumed"] and "accuracy_drop" in details["augmentation"]["flip"]


def test_steps_of_another_network_are_not_taken(labelled, tmp_path):
    run(labelled, Checkpoint(tmp_path / "checkpoint", "request"))
    start = pruned_network()
    name = next(iter(start.tensors))
    other = dataclasses.replace(start, tensors={**start.tensors, name: start.tensors[name] * 1.01})
    alone = run(labelled, network=other)
    assert same(alone.network, run(labelled, Checkpoint(tmp_path / "checkpoint", "request"), network=other).network)
