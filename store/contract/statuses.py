"""The words that statuses, kinds of work and failures are told in."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    queued = "queued"
    running = "running"
    cancelling = "cancelling"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (JobStatus.succeeded, JobStatus.failed, JobStatus.cancelled)


class InspectionStatus(StrEnum):
    inspecting = "inspecting"
    ready = "ready"
    rejected = "rejected"


class PlanStatus(StrEnum):
    planning = "planning"
    ready = "ready"
    failed = "failed"


class WorkKind(StrEnum):
    """What a worker can claim. Short work (CPU, at most five minutes) has a slot of its own, beside the one for jobs."""

    job = "job"
    plan = "plan"
    inspect_model = "inspect_model"
    inspect_dataset = "inspect_dataset"


SHORT_WORK = frozenset(set(WorkKind) - {WorkKind.job})


class ErrorCode(StrEnum):
    """Codes of a failed job or plan, or of a rejected upload. `invalid_request` is what only the engine can know: a
    plan that names a layer which the model does not have."""

    invalid_request = "invalid_request"
    invalid_model = "invalid_model"
    unsafe_model = "unsafe_model"
    unsupported_format = "unsupported_format"
    architecture_mismatch = "architecture_mismatch"
    unknown_architecture = "unknown_architecture"
    shape_mismatch = "shape_mismatch"
    too_large = "too_large"
    dataset_invalid = "dataset_invalid"
    target_infeasible = "target_infeasible"
    target_unmet = "target_unmet"
    accuracy_floor = "accuracy_floor"
    equivalence_failed = "equivalence_failed"
    out_of_memory = "out_of_memory"
    timeout = "timeout"
    worker_lost = "worker_lost"
    internal = "internal"
