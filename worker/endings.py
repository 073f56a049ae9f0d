"""The ways in which an attempt can end, and the words for those that nobody but the worker could say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from store.contract import (
    DatasetInspection,
    ErrorCode,
    ErrorInfo,
    JobResult,
    ModelInspection,
    PlanOutcome,
    WorkKind,
)

Result = JobResult | PlanOutcome | ModelInspection | DatasetInspection
RESULTS: Mapping[WorkKind, type[Result]] = {
    WorkKind.job: JobResult,
    WorkKind.plan: PlanOutcome,
    WorkKind.inspect_model: ModelInspection,
    WorkKind.inspect_dataset: DatasetInspection,
}


@dataclass(frozen=True)
class Finished:
    result: Result


@dataclass(frozen=True)
class Failed:
    error: ErrorInfo
    best: JobResult | None = None


@dataclass(frozen=True)
class TimedOut:
    pass


@dataclass(frozen=True)
class Cancelled:
    pass


@dataclass(frozen=True)
class Stopped:
    pass


@dataclass(frozen=True)
class Crashed:
    signal_number: int


@dataclass(frozen=True)
class Fenced:
    pass


End = Finished | Failed | TimedOut | Cancelled | Stopped | Crashed | Fenced


MEMORY_USED_UP = ErrorInfo(
    code=ErrorCode.out_of_memory,
    message="The system killed this task because the worker's memory was used up. Use a smaller batch size "
    "(recovery.batch_size), a smaller dataset, or a worker with more memory.",
)


def scratch_full(limit: int) -> ErrorInfo:
    message = (
        f"The task wrote more than the {limit / 2**30:.3g} GiB of files that it may and was stopped. Use a smaller model "
        "or dataset, or a worker with a larger PENNYWEIGHT_MAX_SCRATCH_BYTES."
    )
    return ErrorInfo(code=ErrorCode.too_large, message=message)


def in_words(error: Exception) -> str:
    """The kind of trouble, without the paths and addresses that its message may hold: tenants read this."""
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__


def out_of_memory_kills() -> int:
    """How often the kernel has killed a process for memory since it started; 0 where it does not say."""
    counters = Path("/proc/vmstat")
    lines = counters.read_text().splitlines() if counters.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
