"""What a runner gets for a claim: the files, fetched into its folder, and a task that says what to do with them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.claims import Claim, DatasetSubject, JobSubject, ModelSubject
from store.contract import JobRequest, WorkKind
from store.objects import ObjectStore
from worker.protocol import INPUT_FOLDER, RUNNER_READABLE, DatasetInput, ModelInput, Task

SPARE_CPU_SECONDS = 60


@dataclass(frozen=True)
class Preparation:
    """folder: the runner's. threads: for the engine's arithmetic. checkpoint_interval_s: how often a job keeps its state."""

    claim: Claim
    objects: ObjectStore
    folder: Path
    threads: int
    checkpoint_interval_s: float

    def task(self) -> Task:
        """Fetch the claim's files and describe what to do with them. Raises ObjectMissing."""
        subject = self.claim.subject
        request = subject.request if isinstance(subject, JobSubject) else None
        model = subject.model if isinstance(subject, JobSubject) else subject
        dataset = subject.dataset if isinstance(subject, JobSubject) else subject
        return Task(
            kind=self.claim.kind.value,
            threads=self.threads,
            cpu_seconds=self.claim.max_runtime_s * self.threads + SPARE_CPU_SECONDS,
            model=self._model(model) if isinstance(model, ModelSubject) else None,
            dataset=self._dataset(dataset) if isinstance(dataset, DatasetSubject) else None,
            request=JobRequest.model_validate(request) if request is not None else None,
            request_sha256=_digest(request) if request is not None else None,
            checkpoint_interval_s=self.checkpoint_interval_s if self.claim.kind is WorkKind.job else None,
        )

    def _model(self, model: ModelSubject) -> ModelInput:
        return ModelInput(
            file=self._fetch(model, "model"),
            sha256=model.sha256,
            architecture=model.architecture,
            architecture_args=dict(model.architecture_args),
            input_shape=model.input_shape,
        )

    def _dataset(self, dataset: DatasetSubject) -> DatasetInput:
        return DatasetInput(
            file=self._fetch(dataset, "dataset"),
            sha256=dataset.sha256,
            normalization=dataset.normalization,
            scale=dataset.scale,
            convert=dataset.convert,
        )

    def _fetch(self, upload: ModelSubject | DatasetSubject, name: str) -> str:
        path = self.folder / INPUT_FOLDER / name
        self.objects.fetch(upload.object_key, path, upload.sha256)
        path.chmod(RUNNER_READABLE)
        return f"{INPUT_FOLDER}/{name}"


def _digest(request: Any) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
