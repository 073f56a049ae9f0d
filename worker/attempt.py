"""One attempt at one claim: fetch the files, watch the runner, store what it made, make the last write.

However it goes, it ends in exactly one of these, and every write carries the claim's fencing token:

    Finished   the runner gave a result           → finish (artifacts become visible in the same transaction)
    Failed     a known reason                     → fail or reject with its code
    TimedOut   longer than the work may run       → fail or reject with `timeout`
    Cancelled  somebody asked                     → cancel
    Stopped    this worker is shutting down       → release, claimable at once, no loss counted
    Crashed    the runner died of a signal        → lose, tried again; the same signal twice → fail
    Fenced     the lease is gone                  → nothing: another worker decides

Trouble of the worker's own (a full disk, no memory for a process, storage that does not answer) says nothing about the
work: it waits without a loss, longer each time, and the exception goes on to the slot, which backs off. Trouble that does
not end after `store.waiting.TROUBLE_LIMIT` times ends the work with words about it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from store import logs, tracing
from store.claims import Claim, DatasetSubject, JobSubject, ModelSubject
from store.contract import (
    DatasetInspection,
    ErrorCode,
    ErrorInfo,
    JobRequest,
    JobResult,
    JobStatus,
    ModelInspection,
    PlanOutcome,
    WorkKind,
)
from store.database import Database
from store.errors import ObjectMissing
from store.layout import job_prefix
from store.objects import ObjectStore
from store.transitions import STAGES
from store.waiting import too_slow
from store.work import (
    cancel_job,
    fail_job,
    finish_dataset,
    finish_job,
    finish_model,
    finish_plan,
    lose,
    reject,
    release,
    trouble,
)
from worker.endings import (
    MEMORY_USED_UP,
    RESULTS,
    Cancelled,
    Crashed,
    End,
    Failed,
    Fenced,
    Finished,
    Result,
    Stopped,
    TimedOut,
    in_words,
    out_of_memory_kills,
    scratch_full,
)
from worker.lease import Lease, Timing
from worker.outputs import delete_outputs, store_outputs
from worker.process import RunnerProcess, bytes_below
from worker.progress import ProgressBoard
from worker.protocol import (
    INPUT_FOLDER,
    RUNNER_READABLE,
    DatasetInput,
    ErrorMessage,
    ModelInput,
    ProgressMessage,
    ProtocolError,
    ResultMessage,
    Task,
)

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2
MEASURE_EVERY_S = 2.0
CANCEL_GRACE_S = 5.0
# A runner that has closed its messages is ending; its interpreter may take a moment.
END_GRACE_S = 10.0
SPARE_CPU_SECONDS = 60
STOP_NOTICE_S = 2.0
TROUBLE_DELAY_S = 2.0
LONGEST_TROUBLE_DELAY_S = 300.0
_ID_FIELDS = {
    WorkKind.job: "job_id",
    WorkKind.plan: "plan_id",
    WorkKind.inspect_model: "model_id",
    WorkKind.inspect_dataset: "dataset_id",
}
CODES_WITH_LOG = frozenset({ErrorCode.internal, ErrorCode.out_of_memory, ErrorCode.worker_lost})


@dataclass(frozen=True)
class Services:
    """What every attempt of a worker shares. scratch_bytes: what one runner's folder may hold. crashes: the signal that
    last ended each work item's runner here."""

    database: Database
    objects: ObjectStore
    timing: Timing
    stopping: threading.Event
    scratch_bytes: int
    crashes: dict[str, int] = field(default_factory=dict)


class Attempt:
    """Made for one claim, run once."""

    def __init__(self, services: Services, claim: Claim, take_runner: Callable[[], RunnerProcess]) -> None:
        self._services = services
        self._claim = claim
        self._take_runner = take_runner
        self._started = self._measure_at = time.monotonic()
        self._lease = Lease(services.database, claim, services.timing)
        self._phases = tracing.Phases()

    def nudge(self) -> None:
        """Something may have changed for this work: look now."""
        self._lease.nudge()

    def run(self) -> None:
        """Work on the claim to its end. Raises whatever trouble this worker has of its own, the work given back."""
        name, about = f"work {self._claim.kind.value}", self._about()
        with logs.bound(**about), tracing.span(name, of=self._claim.id, **about) as span, self._lease as lease:
            try:
                with self._phases, self._take_runner() as runner:
                    end = self._watch(runner)
                    span.set(end=type(end).__name__)
                    if isinstance(end, Cancelled):
                        runner.terminate(CANCEL_GRACE_S, keep_waiting=lambda: not self._services.stopping.is_set())
                    runner.kill()
                    logger.info("Attempt %d of %s: %s.", self._claim.attempt, self._claim.id, type(end).__name__)
                    self._phases.enter("settle")
                    self._settle(end, runner)
            except Exception as error:
                delay_s = trouble_delay_s(self._claim.troubles)
                logger.error(
                    "Attempt %d of %s failed on this worker; if it is tried again, in %g s at the earliest.",
                    self._claim.attempt,
                    self._claim.id,
                    delay_s,
                )
                what = in_words(error)
                lease.settle(lambda: trouble(self._services.database, self._claim, delay_s=delay_s, what=what))
                raise

    def _about(self) -> dict[str, object]:
        """What every line that is logged meanwhile is about."""
        claim = self._claim
        return {_ID_FIELDS[claim.kind]: claim.id, "attempt": claim.attempt, "tenant": claim.tenant_id}

    # --- while the runner works ---

    def _watch(self, runner: RunnerProcess) -> End:
        kills_before = out_of_memory_kills()
        board = ProgressBoard()
        try:
            try:
                self._phases.enter("fetch")
                task = self._prepare(runner.folder, runner.spec.threads)
            except ObjectMissing as error:
                return self._file_missing(error)
            runner.start(task)
            while runner.talking:
                if end := self._interruption(runner):
                    return end
                for message in runner.read(LOOK_EVERY_S):
                    if isinstance(message, ProgressMessage):
                        if entered := board.apply(message):
                            # The name is a runner's, which may have been taken over.
                            self._phases.enter(f"stage {board.stage if board.stage in STAGES else 'other'}")
                        self._lease.report(board.snapshot(), board.stage if entered else None)
                    elif isinstance(message, ResultMessage):
                        return Finished(self._validated(message.result))
                    elif isinstance(message, ErrorMessage):
                        return self._failed(message.error, runner)
        except ProtocolError as error:
            return self._misbehaved(error, runner)
        return self._interruption() or self._death(runner, kills_before)

    def _prepare(self, folder: Path, threads: int) -> Task:
        """Fetch the claim's files into the runner's folder and describe what to do with them."""
        subject = self._claim.subject
        request = subject.request if isinstance(subject, JobSubject) else None
        model = subject.model if isinstance(subject, JobSubject) else subject
        dataset = subject.dataset if isinstance(subject, JobSubject) else subject
        return Task(
            kind=self._claim.kind.value,
            threads=threads,
            cpu_seconds=self._claim.max_runtime_s * threads + SPARE_CPU_SECONDS,
            model=self._fetch_model(model, folder) if isinstance(model, ModelSubject) else None,
            dataset=self._fetch_dataset(dataset, folder) if isinstance(dataset, DatasetSubject) else None,
            request=JobRequest.model_validate(request) if request is not None else None,
            request_sha256=_digest(request) if request is not None else None,
        )

    def _fetch_model(self, model: ModelSubject, folder: Path) -> ModelInput:
        return ModelInput(
            file=self._fetch(model, folder, "model"),
            architecture=model.architecture,
            architecture_args=dict(model.architecture_args),
            input_shape=model.input_shape,
        )

    def _fetch_dataset(self, dataset: DatasetSubject, folder: Path) -> DatasetInput:
        return DatasetInput(
            file=self._fetch(dataset, folder, "dataset"),
            normalization=dataset.normalization,
            scale=dataset.scale,
            convert=dataset.convert,
        )

    def _fetch(self, upload: ModelSubject | DatasetSubject, folder: Path, name: str) -> str:
        path = folder / INPUT_FOLDER / name
        self._services.objects.fetch(upload.object_key, path, upload.sha256)
        path.chmod(RUNNER_READABLE)
        return f"{INPUT_FOLDER}/{name}"

    def _interruption(self, runner: RunnerProcess | None = None) -> End | None:
        """Why the runner should not go on, the strongest reason first."""
        if self._lease.lost:
            return Fenced()
        if self._services.stopping.is_set():
            return Stopped()
        if self._lease.cancel_requested:
            return Cancelled()
        if time.monotonic() - self._started > self._claim.max_runtime_s:
            return TimedOut()
        if runner is not None and time.monotonic() >= self._measure_at:
            self._measure_at = time.monotonic() + MEASURE_EVERY_S
            limit = self._services.scratch_bytes
            if bytes_below(runner.folder, stop_at=limit) > limit:
                return Failed(scratch_full(limit))
        return None

    # --- how it ended ---

    def _validated(self, result: dict[str, Any]) -> Result:
        shape = RESULTS[self._claim.kind]
        try:
            return shape.model_validate(result)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "/".join(map(str, first["loc"]))
            raise ProtocolError(
                f"The runner gave a result that is no {shape.__name__} ({where}: {first['msg']})."
            ) from error

    def _failed(self, error: ErrorInfo, runner: RunnerProcess) -> Failed:
        details = dict(error.details)
        best = details.pop("result", None) if error.code is ErrorCode.target_unmet else None
        if best is not None:
            best = self._validated({**best, "artifacts": []})
        if error.code in CODES_WITH_LOG:
            # What the runner wrote last may still be on its way.
            runner.exit_status(END_GRACE_S)
            logger.warning("%s failed (%s):\n%s", self._claim.id, error.code.value, "\n".join(runner.log_tail()))
            error = error.model_copy(update={"log_tail": runner.log_tail()})
        return Failed(error.model_copy(update={"details": details}), best)

    def _file_missing(self, error: ObjectMissing) -> Failed:
        """A file that is gone stays gone, however often this is tried."""
        logger.error("%s cannot be worked on: %s", self._claim.id, error)
        subject = self._claim.subject
        uploads = (subject.model, subject.dataset) if isinstance(subject, JobSubject) else (subject,)
        gone = next(upload for upload in uploads if upload is not None and upload.object_key == error.key)
        message = (
            f"The stored file of {gone.id} ({gone.filename}) is missing from this server's storage. Upload it again."
        )
        return Failed(ErrorInfo(code=ErrorCode.internal, message=message))

    def _misbehaved(self, error: ProtocolError, runner: RunnerProcess) -> Failed:
        runner.kill()
        logger.error("The runner of %s broke the protocol: %s", self._claim.id, error)
        return self._failed(
            ErrorInfo(
                code=ErrorCode.internal,
                message="The task's process sent something that is not part of its protocol, so it was stopped.",
            ),
            runner,
        )

    def _death(self, runner: RunnerProcess, kills_before: int) -> End:
        """A runner that ended without saying how."""
        status = runner.exit_status(END_GRACE_S)
        if status == -signal.SIGXCPU:
            return TimedOut()
        # A service manager that stops us tells every process at once, and the runner may be the quicker one to end.
        if status == -signal.SIGTERM and self._services.stopping.wait(STOP_NOTICE_S):
            return Stopped()
        if status == -signal.SIGKILL and out_of_memory_kills() > kills_before:
            return self._failed(MEMORY_USED_UP, runner)
        if status < 0:
            return self._crashed(-status, runner)
        message = (
            f"The task's process ended with status {status} and without a result; the worker's log has the details."
        )
        return self._failed(ErrorInfo(code=ErrorCode.internal, message=message, retryable=True), runner)

    def _crashed(self, number: int, runner: RunnerProcess) -> Crashed | Failed:
        name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        logger.error("The runner of %s was ended by %s:\n%s", self._claim.id, name, "\n".join(runner.log_tail()))
        if self._services.crashes.get(self._claim.id) != number:
            return Crashed(number)
        memory = " Most likely the worker ran out of memory." if number == signal.SIGKILL else ""
        message = f"The task's process was ended by {name} twice in a row, so it is not tried again.{memory}"
        return self._failed(ErrorInfo(code=ErrorCode.worker_lost, message=message, retryable=True), runner)

    # --- the last write ---

    def _settle(self, end: End, runner: RunnerProcess) -> None:
        database, claim, lease = self._services.database, self._claim, self._lease
        if not isinstance(end, Crashed):
            self._services.crashes.pop(claim.id, None)
        match end:
            case Finished(result=JobResult() as result):
                self._finish_job(result, runner)
            case Finished(result=PlanOutcome() as outcome):
                lease.settle(lambda: finish_plan(database, claim, outcome))
            case Finished(result=ModelInspection() as found):
                lease.settle(lambda: finish_model(database, claim, found))
            case Finished(result=DatasetInspection() as found):
                lease.settle(lambda: finish_dataset(database, claim, found))
            case Failed(error=error, best=best):
                self._fail(error, best)
            case TimedOut():
                self._fail(too_slow(claim.kind, claim.max_runtime_s), None)
            case Cancelled():
                lease.settle(lambda: cancel_job(database, claim))
            case Stopped():
                lease.settle(lambda: release(database, claim))
            case Crashed(signal_number=number):
                self._services.crashes[claim.id] = number
                lease.settle(lambda: lose(database, claim))
        if claim.kind is WorkKind.job and isinstance(end, Finished | Failed | TimedOut | Cancelled):
            self._remove_earlier_attempts()

    def _finish_job(self, result: JobResult, runner: RunnerProcess) -> None:
        try:
            stored = store_outputs(runner.folder, result, self._services.objects, self._claim)
        except ProtocolError as error:
            self._fail(self._misbehaved(error, runner).error, None)
            return
        types = {artifact.name: artifact.media_type for artifact in stored}
        shown = [artifact.model_copy(update={"media_type": types[artifact.name]}) for artifact in result.artifacts]
        result = result.model_copy(update={"artifacts": shown})
        ended_as: list[JobStatus] = []
        written = self._lease.settle(
            lambda: ended_as.append(finish_job(self._services.database, self._claim, result=result, artifacts=stored))
        )
        # Without the last write nothing is deleted: a commit whose answer was lost may have made these files visible.
        if written and ended_as[-1] is not JobStatus.succeeded:
            delete_outputs(stored, self._services.objects)

    def _fail(self, error: ErrorInfo, best: JobResult | None) -> None:
        database, claim = self._services.database, self._claim
        if claim.kind is WorkKind.job:
            self._lease.settle(lambda: fail_job(database, claim, error, best))
        else:
            self._lease.settle(lambda: reject(database, claim, error))

    def _remove_earlier_attempts(self) -> None:
        """What attempts that were cut off may have left in storage; nothing refers to it."""
        if self._lease.lost:
            return
        for attempt in range(1, self._claim.attempt):
            self._services.objects.delete_prefix(f"{job_prefix(self._claim.tenant_id, self._claim.id)}/{attempt}")


def trouble_delay_s(troubles: int) -> float:
    """Seconds until work is tried again that has met so many troubles of workers' own before: twice as long each time."""
    return min(TROUBLE_DELAY_S * 2 ** min(troubles, 16), LONGEST_TROUBLE_DELAY_S)


def _digest(request: Any) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
