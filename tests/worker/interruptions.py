"""Real jobs under a supervisor in this process, and what each of their runners said: how far it was at every checkpoint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from store.contract import JobRequest
from store.database import Database
from store.datasets import DatasetRepository
from store.identifiers import new_id
from store.jobs import JobRepository
from store.layout import dataset_key, model_key
from store.models import ModelRepository
from store.objects import ObjectStore
from store.tables import LOCAL_TENANT
from tests.worker.conftest import Bench, processes_naming
from worker.process import RunnerProcess
from worker.protocol import CheckpointMessage, Message, ProgressMessage, ResumedMessage, Task

TELLING_COMMANDS = str(Path(__file__).parent / "telling_commands.py")


@dataclass
class Run:
    """One runner of a job. began: the training step that it went on from. reached: the last that it told of. saved: the
    steps after which it wrote a checkpoint."""

    began: int = 0
    resumed: bool = False
    reached: int = 0
    saved: list[int] = field(default_factory=list)

    @property
    def trained(self) -> bool:
        """Whether it has told of a training step of its own."""
        return self.reached > self.began

    def hear(self, message: Message) -> None:
        match message:
            case ProgressMessage(stage="recover", step=int(step)):
                self.reached = step
            case CheckpointMessage(state="written"):
                self.saved.append(self.reached)
            case ResumedMessage():
                self.resumed, self.began = True, message.number or 0


class RecordingRunner(RunnerProcess):
    """Takes the place of `worker.slot.RunnerProcess`; `runs` holds the jobs' runs in the order in which they began."""

    runs: ClassVar[list[Run]] = []
    _run: Run | None = None

    def start(self, task: Task) -> None:
        if task.kind == "job":
            self._run = Run()
            self.runs.append(self._run)
        super().start(task)

    def read(self, timeout_s: float) -> list[Message]:
        messages = super().read(timeout_s)
        if self._run is not None:
            for message in messages:
                self._run.hear(message)
        return messages


def training_pids(bench: Bench) -> list[int]:
    """The processes that the runners of this data folder have started for a training."""
    others = set(processes_naming("core.recovery import processes"))
    return [pid for pid in bench.runner_pids() if pid in others]


@dataclass(frozen=True)
class TrainingFiles:
    """A checkpoint (safetensors) of a registered architecture, and labelled images (npz) for it."""

    checkpoint: bytes
    dataset: bytes
    architecture: str
    architecture_args: dict[str, int]
    input_shape: list[int]


def add_training_job(
    database: Database, objects: ObjectStore, files: TrainingFiles, *, epochs: int, seed: int, **recovery: int
) -> str:
    """A job that trains for so many epochs, with other options of `recovery`."""
    model, dataset = new_id("mdl"), new_id("ds")
    with database.transaction() as session:
        ModelRepository(session, LOCAL_TENANT).create(
            id=model,
            filename="net.safetensors",
            name="net",
            architecture=files.architecture,
            architecture_args=files.architecture_args,
            input_shape=files.input_shape,
            **_stored(objects, model_key(LOCAL_TENANT, model), files.checkpoint),
        )
        DatasetRepository(session, LOCAL_TENANT).create(
            id=dataset,
            filename="images.npz",
            name="images",
            **_stored(objects, dataset_key(LOCAL_TENANT, dataset), files.dataset),
        )
    request = JobRequest.model_validate(
        {
            "model": model,
            "dataset": dataset,
            "budget": {"flops": {"max_ratio": 0.4}},
            "recovery": {"epochs": epochs, **recovery},
            "outputs": ["safetensors"],
            "seed": seed,
        }
    )
    with database.transaction() as session:
        return JobRepository(session, LOCAL_TENANT).create(request).id


def _stored(objects: ObjectStore, key: str, content: bytes) -> dict[str, object]:
    with objects.open_writer(key) as writer:
        writer.write(content)
        writer.commit()
    return {"object_key": key, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
