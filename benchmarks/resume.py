"""Training jobs whose runners are killed: how many steps are done twice, and what that does to the result.

    .venv/bin/python -m benchmarks.resume [--jobs 4] [--kills 3] [--interval 0.5] [--epochs 25] [--seed 0] [--processes 1]

A supervisor with a SQLite database and local objects works on jobs that compress a small residual network trained on
scikit-learn's digits; every part is the real one. Each job is done once undisturbed. Then it is done again while its
runner is killed (SIGKILL), or the worker is stopped as in a rolling deployment and another one started, at a random
moment after the attempt's first checkpoint. With `--processes N` so many train each network together, and most of the
kills hit one of those that the runner started, while it trains; the runner must then end, too. Prints for each job the
interruptions, the training steps done twice beside the most that lay between two checkpoints, and the test accuracy
beside the undisturbed one. Exit status 1 if a job does not succeed, trains with fewer processes than were asked for, or
does not go on from the last checkpoint of the attempt before.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save

from examples.demo import digits, train
from store.contract import JobStatus
from store.database import Database
from store.tables import Job
from tests.worker.conftest import Bench
from tests.worker.interruptions import (
    TELLING_COMMANDS,
    RecordingRunner,
    Run,
    TrainingFiles,
    add_training_job,
    training_pids,
)

ARGS = {"depth": 8, "width": 8, "in_channels": 1, "num_classes": 10}
PATIENCE_S = 600.0
# After an attempt's first checkpoint, so that the same end twice does not end the job.
LONGEST_PAUSE_INTERVALS = 2.0


@dataclass(frozen=True)
class Outcome:
    """One job that was interrupted. repeated: training steps done twice, per interruption. interval: the most steps between
    two checkpoints of one attempt."""

    interruptions: Counter[str]
    repeated: list[int]
    interval: int
    steps: int
    accuracy: tuple[float, float]
    same_weights: bool
    faults: list[str]


def files(seed: int) -> TrainingFiles:
    images, labels, split = digits()
    torch.manual_seed(seed)
    dataset = io.BytesIO()
    np.savez(dataset, images=images, labels=labels, split=split)
    checkpoint = save(train(images, labels, split, ARGS))
    return TrainingFiles(checkpoint, dataset.getvalue(), "cifar_resnet", ARGS, [1, 8, 8])


@contextlib.contextmanager
def workplace(interval_s: float) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="pennyweight-resume-") as folder:
        Path(folder).chmod(0o711)
        migrated = Path(folder) / "migrated.db"
        database = Database(f"sqlite:///{migrated}")
        database.migrate()
        database.dispose()
        bench = Bench(Path(folder) / "data", migrated)
        bench.commands = TELLING_COMMANDS
        bench.settings = bench.settings.model_copy(update={"checkpoint_interval_s": interval_s, "lease_s": 20})
        try:
            yield bench
        finally:
            bench.close()


def interrupted(
    bench: Bench, id: str, kills: int, interval_s: float, processes: int, chance: random.Random
) -> Counter[str]:
    """Interrupt the job so often, unless it ends before."""
    done: Counter[str] = Counter()
    supervisor = bench.supervisor()
    for attempt in range(1, kills + 1):

        def begun(attempt: int = attempt) -> Job | None:
            job = bench.job(id)
            if job.status.terminal:
                return job
            # What several processes do is to be interrupted while all of them do it.
            training = processes == 1 or (len(RecordingRunner.runs) == attempt and RecordingRunner.runs[-1].trained)
            return job if training and job.checkpoint_attempt == attempt else None

        if bench.when(begun, PATIENCE_S).status.terminal:
            break
        time.sleep(chance.uniform(0, LONGEST_PAUSE_INTERVALS * interval_s))
        if bench.job(id).status.terminal:
            break
        others = training_pids(bench) if processes > 1 else []
        if chance.random() < 0.25:
            supervisor.stop(60)
            supervisor = bench.supervisor()
            done["planned stop"] += 1
        elif others and chance.random() < 0.75:
            os.kill(chance.choice(others), signal.SIGKILL)
            done["training process killed"] += 1
        elif runners := [pid for pid in bench.runner_pids() if pid not in others]:
            os.kill(runners[-1], signal.SIGKILL)
            done["runner killed"] += 1
    bench.ended(id, PATIENCE_S)
    supervisor.stop(60)
    return done


def compare(runs: list[Run], undisturbed: Job, job: Job, done: Counter[str], processes: int) -> Outcome:
    faults = [] if job.status is JobStatus.succeeded else [f"ended as {job.status.value}: {job.error}"]
    if len(runs) != 1 + done.total():
        faults.append(f"{done.total()} interruptions made {len(runs)} runs")
    for one in (undisturbed, job):
        trained = one.result["recovery"]["training"]["processes"] if one.result else processes
        if trained != processes:
            faults.append(f"trained with {trained} processes instead of {processes}")
    repeated = []
    for before, after in itertools.pairwise(runs):
        repeated.append(max(0, before.reached - after.began))
        if not after.resumed or after.began < before.saved[-1]:
            faults.append(f"went on from step {after.began}, with a checkpoint at {before.saved[-1]}")
    accuracy = tuple(one.result["compressed"]["accuracy"] if one.result else float("nan") for one in (undisturbed, job))
    weights = [
        next((a["sha256"] for a in one.result["artifacts"] if a["name"] == "model.safetensors"), None)
        if one.result
        else None
        for one in (undisturbed, job)
    ]
    interval = max((two - one for run in runs for one, two in itertools.pairwise([run.began, *run.saved])), default=0)
    steps = max(run.reached for run in runs)
    return Outcome(done, repeated, interval, steps, accuracy, weights[0] == weights[1], faults)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--kills", type=int, default=3, help="interruptions of each job")
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between checkpoints")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="processes of each training")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    given = files(arguments.seed)
    outcomes = []
    print(
        "job  interruptions                    steps  interval  repeated max/mean  accuracy undisturbed/interrupted  same weights"
    )
    for number in range(arguments.jobs):
        with workplace(arguments.interval) as bench, mock.patch("worker.slot.RunnerProcess", RecordingRunner):
            seed = arguments.seed + number
            options = {"epochs": arguments.epochs, "seed": seed, "processes": arguments.processes}
            first = bench.supervisor()
            whole = add_training_job(bench.database, bench.objects, given, **options)
            undisturbed = bench.ended(whole, PATIENCE_S)
            first.stop(60)
            RecordingRunner.runs.clear()
            id = add_training_job(bench.database, bench.objects, given, **options)
            done = interrupted(bench, id, arguments.kills, arguments.interval, arguments.processes, chance)
            outcome = compare(list(RecordingRunner.runs), undisturbed, bench.job(id), done, arguments.processes)
        outcomes.append(outcome)
        show(number, outcome)
    repeated = [steps for outcome in outcomes for steps in outcome.repeated]
    interruptions = sum((outcome.interruptions for outcome in outcomes), Counter())
    print(
        f"{len(outcomes)} jobs, {dict(interruptions)}; steps repeated per interruption: max {max(repeated, default=0)}, "
        f"mean {sum(repeated) / max(1, len(repeated)):.1f} of {max(o.steps for o in outcomes)}; "
        f"{sum(o.same_weights for o in outcomes)} jobs with the very weights of the undisturbed one"
    )
    for outcome in outcomes:
        for fault in outcome.faults:
            print("FAULT", fault)
    return int(any(outcome.faults for outcome in outcomes))


def show(number: int, outcome: Outcome) -> None:
    what = ", ".join(f"{count} × {name}" for name, count in outcome.interruptions.items())
    mean = sum(outcome.repeated) / max(1, len(outcome.repeated))
    print(
        f"{number:>3}  {what:<32} {outcome.steps:>5}  {outcome.interval:>8}  {max(outcome.repeated, default=0):>8} / {mean:<6.1f}  "
        f"{outcome.accuracy[0]:>10.4f} / {outcome.accuracy[1]:<10.4f}  {'yes' if outcome.same_weights else 'no'}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
