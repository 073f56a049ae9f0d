"""What to make of a runner's end: its result, its error, its death, as one of `worker.endings`."""

from __future__ import annotations

import logging
import signal
from typing import Any

from pydantic import ValidationError

from store.claims import Claim, JobSubject
from store.contract import ErrorCode, ErrorInfo, WorkKind
from store.errors import ObjectMissing
from worker.endings import RESULTS, Crashed, Failed, Finished, Result
from worker.process import RunnerProcess
from worker.protocol import ProtocolError

logger = logging.getLogger(__name__)

# A runner that has closed its messages is ending; its interpreter may take a moment.
END_GRACE_S = 10.0
CODES_WITH_LOG = frozenset({ErrorCode.internal, ErrorCode.out_of_memory, ErrorCode.worker_lost})


def finished(kind: WorkKind, result: dict[str, Any]) -> Finished:
    """Raises ProtocolError where it is not what this kind of work gives."""
    return Finished(validated(kind, result))


def validated(kind: WorkKind, result: dict[str, Any]) -> Result:
    """Raises ProtocolError."""
    shape = RESULTS[kind]
    try:
        return shape.model_validate(result)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "/".join(map(str, first["loc"]))
        raise ProtocolError(
            f"The runner gave a result that is no {shape.__name__} ({where}: {first['msg']})."
        ) from error


def failed(claim: Claim, error: ErrorInfo, runner: RunnerProcess) -> Failed:
    """The runner's error, or ours about it, with the end of the log where that says more. Raises ProtocolError."""
    details = dict(error.details)
    best = details.pop("result", None) if error.code is ErrorCode.target_unmet else None
    if best is not None:
        best = validated(claim.kind, {**best, "artifacts": []})
    if error.code in CODES_WITH_LOG:
        # What the runner wrote last may still be on its way.
        runner.exit_status(END_GRACE_S)
        logger.warning("%s failed (%s):\n%s", claim.id, error.code.value, "\n".join(runner.log_tail()))
        error = error.model_copy(update={"log_tail": runner.log_tail()})
    return Failed(error.model_copy(update={"details": details}), best)


def file_missing(claim: Claim, error: ObjectMissing) -> Failed:
    """A file that is gone stays gone, however often this is tried."""
    logger.error("%s cannot be worked on: %s", claim.id, error)
    subject = claim.subject
    uploads = (subject.model, subject.dataset) if isinstance(subject, JobSubject) else (subject,)
    gone = next(upload for upload in uploads if upload is not None and upload.object_key == error.key)
    message = f"The stored file of {gone.id} ({gone.filename}) is missing from this server's storage. Upload it again."
    return Failed(ErrorInfo(code=ErrorCode.internal, message=message))


def misbehaved(claim: Claim, error: ProtocolError, runner: RunnerProcess) -> Failed:
    runner.kill()
    logger.error("The runner of %s broke the protocol: %s", claim.id, error)
    message = "The task's process sent something that is not part of its protocol, so it was stopped."
    return failed(claim, ErrorInfo(code=ErrorCode.internal, message=message), runner)


def ended_with(claim: Claim, status: int, runner: RunnerProcess) -> Failed:
    message = f"The task's process ended with status {status} and without a result; the worker's log has the details."
    return failed(claim, ErrorInfo(code=ErrorCode.internal, message=message, retryable=True), runner)


def crashed(claim: Claim, number: int, runner: RunnerProcess, *, again: bool) -> Crashed | Failed:
    """Ended by signal `number`; again: the attempt before ended like this, and this one has got no further."""
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    logger.error("The runner of %s was ended by %s:\n%s", claim.id, name, "\n".join(runner.log_tail()))
    if not again:
        return Crashed(number)
    memory = " Most likely the worker ran out of memory." if number == signal.SIGKILL else ""
    message = f"The task's process was ended by {name} twice in a row, so it is not tried again.{memory}"
    return failed(claim, ErrorInfo(code=ErrorCode.worker_lost, message=message, retryable=True), runner)
