"""What one tenant may have at a time, checked in the transaction that would add to it; None is without a limit.

A limit is the tenant's own, where one was set, or the installation's. The tenant's row is locked before anything is
counted, so that two requests at once cannot both have the last piece.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from store import dialect, gpu_time
from store.contract import JobStatus
from store.errors import NotFound, QuotaExceeded, QuotaUse, TooManyJobs
from store.settings import Settings
from store.tables import Artifact, Dataset, Job, Model, Tenant, Upload

LimitName = Literal["stored_bytes", "active_jobs", "gpu_seconds"]
LIMITS: tuple[LimitName, ...] = get_args(LimitName)
_ACTIVE = tuple(status for status in JobStatus if not status.terminal)


@dataclass(frozen=True)
class Quotas:
    """Limits. gpu_seconds is what `gpu_time.used_s` counts."""

    stored_bytes: int | None = None
    active_jobs: int | None = None
    gpu_seconds: int | None = None

    @classmethod
    def of_installation(cls, settings: Settings) -> Quotas:
        """The limits of every tenant that has none of its own."""
        return cls(settings.quota_stored_bytes, settings.quota_active_jobs, settings.quota_gpu_seconds)

    def of(self, session: Session, tenant_id: str) -> Quotas:
        """The tenant's limits, these being everybody's."""
        own = session.scalar(select(Tenant.quotas).where(Tenant.id == tenant_id)) or {}
        return Quotas(**{**asdict(self), **{name: own[name] for name in LIMITS if name in own}})

    def require_bytes(self, session: Session, tenant_id: str, more: int) -> None:
        """Room for `more` bytes, beside models, datasets, artifacts and announced uploads. Raises QuotaExceeded."""
        limit = self.of(session, tenant_id).stored_bytes
        if limit is None:
            return
        _lock(session, tenant_id)
        used = stored_bytes(session, tenant_id)
        if used + more > limit:
            raise QuotaExceeded(
                f"{used} of {limit} bytes are in use, and {more} more do not fit. Delete models, datasets or jobs that "
                "are no longer needed, or ask whoever runs this service for a higher limit.",
                QuotaUse("stored_bytes", limit, used, more),
            )

    def require_job(self, session: Session, tenant_id: str, device: str, *, gpus: bool) -> None:
        """Room for one more job that asks for this `device`; `gpus` says whether any worker has one, which a job for
        `auto` may then get. Raises TooManyJobs, and QuotaExceeded where no job is allowed or no GPU time is left."""
        limits = self.of(session, tenant_id)
        if limits.active_jobs == 0:
            raise QuotaExceeded(
                "This tenant may run no jobs: its limit is 0, and waiting does not change that. Whoever runs this "
                "service sets the limit; ask for a higher one.",
                QuotaUse("active_jobs", 0, active_jobs(session, tenant_id), 1),
            )
        if limits.active_jobs is not None:
            _lock(session, tenant_id)
            active = active_jobs(session, tenant_id)
            if active >= limits.active_jobs:
                raise TooManyJobs(
                    f"{active} of {limits.active_jobs} jobs are queued or running already. Wait for one to end, or "
                    "cancel one.",
                    QuotaUse("active_jobs", limits.active_jobs, active, 1),
                )
        if limits.gpu_seconds is not None and (device == gpu_time.GPU or (device == "auto" and gpus)):
            used_s = int(gpu_time.used_s(session, tenant_id))
            if used_s >= limits.gpu_seconds:
                raise QuotaExceeded(
                    f"{used_s} of {limits.gpu_seconds} GPU seconds of the last {gpu_time.WINDOW_DAYS} days are used "
                    f"up, and a job for the device {device!r} may take more. Ask for the device 'cpu', wait until "
                    f"older jobs are {gpu_time.WINDOW_DAYS} days past, or ask whoever runs this service for a "
                    "higher limit.",
                    QuotaUse("gpu_seconds", limits.gpu_seconds, used_s, 1),
                )


def usage(session: Session, tenant_id: str) -> dict[LimitName, int]:
    """What the tenant has at this moment of everything that can be limited."""
    return {
        "stored_bytes": stored_bytes(session, tenant_id),
        "active_jobs": active_jobs(session, tenant_id),
        "gpu_seconds": int(gpu_time.used_s(session, tenant_id)),
    }


def own_quotas(session: Session, tenant_id: str) -> dict[str, Any]:
    """The limits that were set for this tenant alone. Raises NotFound."""
    tenant = session.execute(select(Tenant.quotas).where(Tenant.id == tenant_id)).one_or_none()
    if tenant is None:
        raise NotFound("tenant", tenant_id)
    return dict(tenant.quotas or {})


def change_quotas(
    session: Session, tenant_id: str, own: Mapping[LimitName, int | None], inherited: Collection[LimitName] = ()
) -> None:
    """Make `own` limits of the tenant's own, and those that are `inherited` the installation's again; the others stay
    as they are. Raises NotFound."""
    _lock(session, tenant_id)
    kept = {name: limit for name, limit in own_quotas(session, tenant_id).items() if name not in inherited}
    session.execute(update(Tenant).where(Tenant.id == tenant_id).values(quotas={**kept, **own} or None))


def stored_bytes(session: Session, tenant_id: str) -> int:
    """Bytes of everything that the tenant has stored or announced."""
    totals = [
        select(func.sum(Model.size_bytes)).where(Model.tenant_id == tenant_id),
        select(func.sum(Dataset.size_bytes)).where(Dataset.tenant_id == tenant_id),
        select(func.sum(Artifact.size)).join(Job, Job.id == Artifact.job_id).where(Job.tenant_id == tenant_id),
        select(func.sum(Upload.size_bytes)).where(
            Upload.tenant_id == tenant_id, Upload.completed_at.is_(None), Upload.expires_at > dialect.now(session)
        ),
    ]
    return sum(int(session.scalar(total) or 0) for total in totals)


def active_jobs(session: Session, tenant_id: str) -> int:
    """How many of the tenant's jobs have not ended."""
    active = select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id, Job.status.in_(_ACTIVE))
    return session.scalar(active) or 0


def _lock(session: Session, tenant_id: str) -> None:
    session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update())
