"""Jobs of one tenant, as clients see them: create, look, list, cancel, delete."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Select, bindparam, delete, select
from sqlalchemy.orm import Session

from store import dialect, logs, queue
from store.contract import JobRequest, JobStatus, WorkKind
from store.errors import Conflict, NotFound
from store.identifiers import new_id
from store.job_search import found_ids
from store.layout import job_prefix
from store.pages import DEFAULT_LIMIT, Order, Page, coerced, fetch_page
from store.tables import Artifact, Job, JobEvent, JobLabel, Work, WorkState
from store.transitions import touch, transition
from store.uses import require_uploads
from store.webhooks import WebhookRepository


@dataclass(frozen=True)
class JobMark:
    """Where a job stands, and the database's time at that moment."""

    tenant_id: str
    version: int
    status: JobStatus
    created_at: datetime
    now: datetime


class JobRepository:
    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def create(self, request: JobRequest, retry_of: str | None = None) -> Job:
        """A new queued job; its model and dataset may still be inspecting.

        Raises what `require_uploads` raises, and NotFound for `retry_of`.
        """
        if retry_of is not None:
            self.get(retry_of)
        require_uploads(self._session, self._tenant_id, request)
        now = dialect.now(self._session)
        job = Job(
            id=new_id("job"),
            tenant_id=self._tenant_id,
            name=request.name,
            model_id=request.model,
            dataset_id=request.dataset,
            retry_of=retry_of,
            status=JobStatus.queued,
            attempt=0,
            request=request.model_dump(mode="json", exclude={"webhook": {"secret"}}),
            created_at=now,
            queued_at=now,
            version=0,
            last_event_seq=0,
        )
        self._session.add(job)
        logs.add(job_id=job.id)
        self._session.flush()
        self._session.add_all(
            JobLabel(job_id=job.id, key=key, value=value, tenant_id=self._tenant_id, status=job.status)
            for key, value in request.labels.items()
        )
        if request.webhook is not None:
            WebhookRepository(self._session, self._tenant_id).create(
                url=request.webhook.url,
                events=request.webhook.events,
                secret=request.webhook.secret,
                job_id=job.id,
            )
        touch(self._session, job, "job.queued", {"status": "queued", "attempt": 0}, now=now)
        queue.enqueue(
            self._session,
            id=job.id,
            kind=WorkKind.job,
            tenant_id=self._tenant_id,
            queue=request.device,
            priority=request.priority,
            max_runtime_s=request.limits.max_runtime_s,
        )
        self._session.flush()
        return job

    def retry(self, id: str) -> Job:
        """A new job that asks for the same. Raises Conflict `job_not_terminal`, and what `create` raises."""
        old = self.get(id)
        if not old.status.terminal:
            raise Conflict("job_not_terminal", f"The job {id} is still {old.status.value}: wait, or cancel it first.")
        request = JobRequest.model_validate(old.request)
        told = WebhookRepository(self._session, self._tenant_id).of_job(id)
        if request.webhook is not None and told is not None:
            request.webhook.secret = told.secret  # the receiver knows it
        return self.create(request, retry_of=id)

    def get(self, id: str) -> Job:
        """Raises NotFound."""
        job = self._session.scalar(self._mine().where(Job.id == id))
        if job is None:
            raise NotFound("job", id)
        return job

    def list(
        self,
        status: JobStatus | Collection[JobStatus] | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = DEFAULT_LIMIT,
        after: str | None = None,
        order: Order = "desc",
    ) -> Page[Job]:
        """Jobs with this status, or one of these (if given), that carry all of these labels."""
        statement = self._mine()
        if status is not None or labels:
            statuses = [status] if isinstance(status, JobStatus) else list(status or ())
            ids = found_ids(
                self._session,
                self._tenant_id,
                statuses,
                labels or {},
                count=coerced(limit) + 1,
                after=after,
                order=order,
            )
            statement, after = statement.where(Job.id.in_(ids)), None
        return fetch_page(self._session, statement, Job.id, limit=limit, after=after, order=order)

    def request_cancel(self, id: str) -> Job:
        """Cancel a queued job at once; tell a running one to stop. Asking again changes nothing.

        Raises Conflict `job_not_cancellable` for a succeeded or failed job.
        """
        job, work = self._locked(id)
        now = dialect.now(self._session)
        match job.status:
            case JobStatus.queued:
                work.state = WorkState.done
                work.cancel_requested_at = now
                transition(self._session, job, JobStatus.cancelled, now=now)
            case JobStatus.running:
                work.cancel_requested_at = now
                transition(self._session, job, JobStatus.cancelling, now=now)
            case JobStatus.succeeded | JobStatus.failed:
                raise Conflict("job_not_cancellable", f"The job {id} has already {job.status.value}.")
        self._session.flush()
        return job

    def delete(self, id: str) -> list[str]:
        """Delete a terminal job with its events and artifacts.

        Returns object prefixes to remove (`objects.delete_prefix`) after the commit. Raises Conflict
        `job_not_terminal`.
        """
        job, _ = self._locked(id)
        if not job.status.terminal:
            raise Conflict("job_not_terminal", f"The job {id} is still {job.status.value}: cancel it first.")
        queue.forget(self._session, id)
        self._session.execute(delete(Job).where(Job.id == id))
        self._session.expunge(job)
        return [job_prefix(self._tenant_id, id)]

    def events(
        self, id: str, after: int | None = None, limit: int = DEFAULT_LIMIT, order: Order = "asc"
    ) -> Page[JobEvent]:
        """Events of a job; the cursor `after` is a `seq`. Oldest first unless asked otherwise. Raises NotFound."""
        self.get(id)
        statement = select(JobEvent).where(JobEvent.job_id == id)
        return fetch_page(self._session, statement, JobEvent.seq, limit=limit, after=after, order=order)

    def artifacts(self, id: str) -> Sequence[Artifact]:
        """All artifacts of a job by name; empty until it has succeeded. Raises NotFound."""
        self.get(id)
        return self._session.scalars(select(Artifact).where(Artifact.job_id == id).order_by(Artifact.name)).all()

    def artifact(self, id: str, name: str) -> Artifact:
        """Raises NotFound."""
        self.get(id)
        artifact = self._session.get(Artifact, (id, name))
        if artifact is None:
            raise NotFound("artifact", name)
        return artifact

    def _mine(self) -> Select[tuple[Job]]:
        return select(Job).where(Job.tenant_id == self._tenant_id)

    def _locked(self, id: str) -> tuple[Job, Work]:
        self.get(id)
        work = queue.lock(self._session, id)
        job = self._session.scalars(
            self._mine().where(Job.id == id).with_for_update(), execution_options={"populate_existing": True}
        ).one()
        return job, work


# Built once: building it would cost more than asking it.
_MARKS = select(
    *(Job.__table__.c[name] for name in ("id", "tenant_id", "version", "status", "created_at")), dialect.database_now()
).where(Job.__table__.c.id.in_(bindparam("ids", expanding=True)))


def job_marks(session: Session | Connection, ids: Collection[str]) -> dict[str, JobMark]:
    """What polls need to tell that nothing has changed, for many jobs of any tenant in one query."""
    return {id: JobMark(*mark) for id, *mark in session.execute(_MARKS, {"ids": list(ids)})}
