"""One attempt at one claim: fetch the files, watch the runner, store what it made, make the last write.

However it goes, it ends in exactly one of these, and every write carries the claim's fencing token:

    Finished   the runner gave a result           → finish (artifacts become visible in the same transaction)
    Failed     a known reason                     → fail or reject with its code
    TimedOut   longer than the work may run       → fail or reject with `timeout`
    Cancelled  somebody asked                     → cancel
    Stopped    this worker is shutting down       → release, claimable at once, no loss counted; a job that trains first
                                                    gets a moment to write a checkpoint
    Crashed    the runner died of a signal        → lose, tried again; the same signal twice, and no checkpoint written
                                                    between the two → fail
    Fenced     the lease is gone                  → nothing: another worker decides

Trouble of the worker's own (a full disk, no memory for a process, storage that does not answer) says nothing about the
work: it waits without a loss, longer each time, and the exception goes on to the slot, which backs off. Trouble that does
not end after `store.waiting.TROUBLE_LIMIT` times ends the work with words about it.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from store import logs, tracing
from store.checkpoints import drop_checkpoints
from store.claims import Claim
from store.contract import (
    DatasetInspection,
    ErrorInfo,
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
from worker import verdicts
from worker.endings import (
    MEMORY_USED_UP,
    Cancelled,
    Crashed,
    End,
    Failed,
    Fenced,
    Finished,
    Stopped,
    TimedOut,
    in_words,
    out_of_memory_kills,
    scratch_full,
)
from worker.keeper import CheckpointKeeper
from worker.lease import Lease, Timing
from worker.outputs import delete_outputs, store_outputs
from worker.preparation import Preparation
from worker.process import RunnerProcess, bytes_below
from worker.progress import ProgressBoard
from worker.protocol import (
    CheckpointMessage,
    EpochMessage,
    ErrorMessage,
    ProgressMessage,
    ProtocolError,
    ResultMessage,
    ResumedMessage,
)

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2
MEASURE_EVERY_S = 2.0
CANCEL_GRACE_S = 5.0
STOP_NOTICE_S = 2.0
# A checkpoint that a runner left when it died is stored for this long at most, before its job waits for the next attempt.
LAST_CHECKPOINT_S = 60.0
# Of the time that a stopping worker has: to store a checkpoint that was asked for, and to end the runner and give its
# job back.
STORING_S = 5.0
LEAVING_S = 4.0
TROUBLE_DELAY_S = 2.0
LONGEST_TROUBLE_DELAY_S = 300.0
_ID_FIELDS = {
    WorkKind.job: "job_id",
    WorkKind.plan: "plan_id",
    WorkKind.inspect_model: "model_id",
    WorkKind.inspect_dataset: "dataset_id",
}


@dataclass(frozen=True)
class Services:
    """What every attempt of a worker shares.

    scratch_bytes: what one runner's folder may hold. checkpoint_interval_s: how often training is kept;
    checkpoint_grace_s: how long a stopping worker waits until that is done once more. stop_timeout_s: after which a
    stopping worker ends, whatever is still going on. crashes: the signal that last ended each work item's runner here.
    """

    database: Database
    objects: ObjectStore
    timing: Timing
    stopping: threading.Event
    scratch_bytes: int
    checkpoint_interval_s: float
    checkpoint_grace_s: float
    stop_timeout_s: float
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
        self._keeper: CheckpointKeeper
        self._stop_seen: float | None = None
        self._written_when_asked: int | None = None

    def nudge(self) -> None:
        """Something may have changed for this work: look now."""
        self._lease.nudge()

    def run(self) -> None:
        """Work on the claim to its end. Raises whatever trouble this worker has of its own, the work given back."""
        name, about = f"work {self._claim.kind.value}", self._about()
        with logs.bound(**about), tracing.span(name, of=self._claim.id, **about) as span, self._lease as lease:
            try:
                with self._phases, self._take_runner() as runner, self._keeper_for(runner) as self._keeper:
                    end = self._watch(runner)
                    span.set(end=type(end).__name__)
                    if isinstance(end, Cancelled):
                        runner.terminate(CANCEL_GRACE_S, keep_waiting=lambda: not self._services.stopping.is_set())
                    runner.kill()
                    logger.info("Attempt %d of %s: %s.", self._claim.attempt, self._claim.id, type(end).__name__)
                    self._phases.enter("settle")
                    self._settle(end, runner)
            except Exception as error:  # raised again below, once the work is given back
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

    def _keeper_for(self, runner: RunnerProcess) -> CheckpointKeeper:
        services = self._services
        return CheckpointKeeper(
            services.database,
            services.objects,
            self._claim,
            runner.folder,
            limit_bytes=services.scratch_bytes,
            interval_s=services.checkpoint_interval_s,
        )

    # --- while the runner works ---

    def _watch(self, runner: RunnerProcess) -> End:
        kills_before = out_of_memory_kills()
        board = ProgressBoard()
        try:
            try:
                self._phases.enter("fetch")
                task = Preparation(
                    self._claim,
                    self._services.objects,
                    runner.folder,
                    runner.spec.threads,
                    self._services.checkpoint_interval_s,
                ).task()
            except ObjectMissing as error:
                return verdicts.file_missing(self._claim, error)
            self._keeper.fetch()
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
                    elif isinstance(message, EpochMessage):
                        board.count_epoch()
                        self._lease.tell_epoch(message.epoch)
                    elif isinstance(message, ResultMessage):
                        return verdicts.finished(self._claim.kind, message.result)
                    elif isinstance(message, ErrorMessage):
                        return verdicts.failed(self._claim, message.error, runner)
                    elif isinstance(message, CheckpointMessage | ResumedMessage):
                        self._keeper.hear(message)
        except ProtocolError as error:
            return verdicts.misbehaved(self._claim, error, runner)
        return self._interruption() or self._death(runner, kills_before)

    def _interruption(self, runner: RunnerProcess | None = None) -> End | None:
        """Why the runner should not go on, the strongest reason first."""
        if self._lease.lost:
            return Fenced()
        if self._services.stopping.is_set() and not (runner is not None and self._writes_checkpoint(runner)):
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

    def _writes_checkpoint(self, runner: RunnerProcess) -> bool:
        """Whether a job that is to be given back should be waited for: it has been asked for a checkpoint that is not yet
        written."""
        keeper = self._keeper
        if not keeper.possible:
            return False
        if self._written_when_asked is None:
            self._written_when_asked = keeper.written
            runner.ask_for_checkpoint()
        grace_s = min(self._services.checkpoint_grace_s, self._services.stop_timeout_s - LEAVING_S - STORING_S)
        return keeper.written == self._written_when_asked and self._stopping_for() < grace_s

    def _stopping_for(self) -> float:
        """Seconds since this worker was seen to be stopping; 0 while it is not."""
        if not self._services.stopping.is_set():
            return 0.0
        if self._stop_seen is None:
            self._stop_seen = time.monotonic()
        return time.monotonic() - self._stop_seen

    # --- how it ended ---

    def _death(self, runner: RunnerProcess, kills_before: int) -> End:
        """A runner that ended without saying how."""
        status = runner.exit_status(verdicts.END_GRACE_S)
        if status == -signal.SIGXCPU:
            return TimedOut()
        # A service manager that stops us tells every process at once, and the runner may be the quicker one to end.
        if status == -signal.SIGTERM and self._services.stopping.wait(STOP_NOTICE_S):
            return Stopped()
        if status == -signal.SIGKILL and out_of_memory_kills() > kills_before:
            return verdicts.failed(self._claim, MEMORY_USED_UP, runner)
        if status < 0:
            further = self._store_last_checkpoint(LAST_CHECKPOINT_S) or self._services.stopping.is_set()
            again = self._services.crashes.get(self._claim.id) == -status and not further
            return verdicts.crashed(self._claim, -status, runner, again=again)
        return verdicts.ended_with(self._claim, status, runner)

    def _store_last_checkpoint(self, timeout_s: float) -> bool:
        """Store what the runner, which has ended, wrote last; whether this attempt got further than the one before.

        Once the worker stops, no longer than it has time for.
        """
        most_s = self._services.stop_timeout_s - LEAVING_S
        self._keeper.flush(timeout_s, keep_waiting=lambda: not self._lease.lost and self._stopping_for() < most_s)
        return self._keeper.recorded > 0

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
                self._store_last_checkpoint(LAST_CHECKPOINT_S)
                lease.settle(lambda: release(database, claim))
            case Crashed(signal_number=number):
                self._services.crashes[claim.id] = number
                lease.settle(lambda: lose(database, claim))
        if claim.kind is WorkKind.job and isinstance(end, Finished | Failed | TimedOut | Cancelled):
            self._clear_up()

    def _finish_job(self, result: JobResult, runner: RunnerProcess) -> None:
        try:
            stored = store_outputs(runner.folder, result, self._services.objects, self._claim)
        except ProtocolError as error:
            self._fail(verdicts.misbehaved(self._claim, error, runner).error, None)
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

    def _clear_up(self) -> None:
        """Delete what nobody needs after the job's end: its checkpoint, and what attempts that were cut off may have left."""
        if self._lease.lost:
            return
        self._keeper.close()
        drop_checkpoints(self._services.database, self._services.objects, self._claim.id)
        for attempt in range(1, self._claim.attempt):
            self._services.objects.delete_prefix(f"{job_prefix(self._claim.tenant_id, self._claim.id)}/{attempt}")


def trouble_delay_s(troubles: int) -> float:
    """Seconds until work is tried again that has met so many troubles of workers' own before: twice as long each time."""
    return min(TROUBLE_DELAY_S * 2 ** min(troubles, 16), LONGEST_TROUBLE_DELAY_S)
