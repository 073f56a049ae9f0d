"""Plans of one tenant: what a job would do, asked without running it. A plan goes with its model."""

from __future__ import annotations

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from store import dialect, queue
from store.contract import JobRequest, PlanStatus, WorkKind
from store.errors import NotFound
from store.identifiers import new_id
from store.pages import DEFAULT_LIMIT, Order, Page, fetch_page
from store.tables import Plan, Work
from store.uses import require_uploads


class PlanRepository:
    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def create(self, request: JobRequest) -> Plan:
        """A new plan, `planning`, with its work queued in the same transaction.

        Its model and dataset may still be inspecting. Raises what `require_uploads` raises.
        """
        require_uploads(self._session, self._tenant_id, request)
        plan = Plan(
            id=new_id("pln"),
            tenant_id=self._tenant_id,
            model_id=request.model,
            dataset_id=request.dataset,
            status=PlanStatus.planning,
            request=request.model_dump(mode="json"),
            created_at=dialect.now(self._session),
        )
        self._session.add(plan)
        queue.enqueue(
            self._session,
            id=plan.id,
            kind=WorkKind.plan,
            tenant_id=self._tenant_id,
            max_runtime_s=min(request.limits.max_runtime_s, queue.SHORT_WORK_MAX_RUNTIME_S),
        )
        self._session.flush()
        return plan

    def get(self, id: str) -> Plan:
        """Raises NotFound."""
        plan = self._session.scalar(self._mine().where(Plan.id == id))
        if plan is None:
            raise NotFound("plan", id)
        return plan

    def list(
        self, model: str | None = None, limit: int = DEFAULT_LIMIT, after: str | None = None, order: Order = "desc"
    ) -> Page[Plan]:
        """Plans, of this model if one is given."""
        statement = self._mine() if model is None else self._mine().where(Plan.model_id == model)
        return fetch_page(self._session, statement, Plan.id, limit=limit, after=after, order=order)

    def delete(self, id: str) -> None:
        """Delete a plan; one in the making is given up. Raises NotFound."""
        self.get(id)
        queue.lock(self._session, id)
        queue.forget(self._session, id)
        self._session.execute(delete(Plan).where(Plan.id == id))

    def _mine(self) -> Select[tuple[Plan]]:
        return select(Plan).where(Plan.tenant_id == self._tenant_id)


def forget_plans(session: Session, model_id: str) -> None:
    """Delete the plans of a model, none of which is in the making."""
    plans = select(Plan.id).where(Plan.model_id == model_id)
    session.execute(delete(Work).where(Work.id.in_(plans)))
    session.execute(delete(Plan).where(Plan.model_id == model_id))
