"""Training that is killed again and again repeats the steps since its last checkpoint, and comes out as if nobody had."""

from __future__ import annotations

import io
import itertools
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save

from examples.demo import digits, train
from store.contract import JobStatus
from tests.worker.interruptions import TELLING_COMMANDS, RecordingRunner, TrainingFiles, add_training_job

ARGS = {"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10}
KILLS = 2


@pytest.fixture(scope="module")
def digits_files() -> TrainingFiles:
    images, labels, split = digits()
    torch.manual_seed(0)
    dataset = io.BytesIO()
    np.savez(dataset, images=images, labels=labels, split=split)
    return TrainingFiles(save(train(images, labels, split, ARGS)), dataset.getvalue(), "cifar_resnet", ARGS, [1, 8, 8])


def test_a_runner_killed_at_random_points_repeats_no_finished_interval_and_gives_the_same_network(
    bench, digits_files, monkeypatch
):
    monkeypatch.setattr("worker.slot.RunnerProcess", RecordingRunner)
    monkeypatch.setattr("store.waiting.LOSS_BACKOFF_S", 0.1)
    monkeypatch.setattr(RecordingRunner, "runs", [])
    bench.settings = bench.settings.model_copy(update={"checkpoint_interval_s": 0.1})
    bench.commands = TELLING_COMMANDS
    bench.supervisor()
    ids = [add_training_job(bench.database, bench.objects, digits_files, epochs=6, seed=3) for _ in range(2)]

    undisturbed = bench.ended(ids[0], timeout_s=240)
    assert undisturbed.status is JobStatus.succeeded, undisturbed.error
    runs = RecordingRunner.runs
    runs.clear()
    chance = random.Random(0)
    for attempt in range(1, KILLS + 1):
        bench.when(lambda attempt=attempt: bench.job(ids[1]).checkpoint_attempt == attempt, timeout_s=180)
        time.sleep(chance.uniform(0, 0.2))
        os.kill(bench.runner_pids()[-1], signal.SIGKILL)
    job = bench.ended(ids[1], timeout_s=240)
    assert (job.status, job.attempt) == (JobStatus.succeeded, KILLS + 1), job.error

    assert len(runs) == KILLS + 1 and not runs[0].resumed
    for before, after in itertools.pairwise(runs):
        # What was written last is what is gone on from: nothing before it is done again.
        assert after.resumed and before.saved[-1] <= after.began <= before.reached
    measured = [
        (one.result["compressed"]["accuracy"], {a["name"]: a["sha256"] for a in one.result["artifacts"]})
        for one in (undisturbed, job)
    ]
    assert measured[0][0] == pytest.approx(measured[1][0], abs=0.02)
    assert measured[0][1]["model.safetensors"] == measured[1][1]["model.safetensors"]
    bench.when(lambda: bench.job(ids[1]).checkpoint_key is None)
