"""Plans: what a job would do, asked before it is run. A worker answers, mostly within a second or two.

Whoever asks is kept waiting for that answer, without a thread or a connection (api.watching).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from api import resources
from api.dependencies import Services, ServicesOf, TenantId, paged
from api.idempotency import REPLAYED, Once, Replay
from api.problems import problems
from api.requests import media_type, read_json, unsupported_media_type
from api.validation import check_options, validate
from api.watching import unless_gone
from store.contract import JobRequest, PlanStatus
from store.plans import PlanRepository
from store.tables import Plan

router = APIRouter(tags=["plans"])

WAIT_S = 30.0
"""How long an answer is waited for before the client is told to come back."""

RETRY_AFTER_S = 1

PageOfPlans = paged("pln", "model")

_job_request: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)
_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}}
_STILL_PLANNING = {
    "description": "Still `planning`: come back to `Location` after `Retry-After`",
    "model": resources.Plan,
}


@router.post(
    "/plans",
    summary="See what a job would do",
    description=(
        "The body is that of a job. The answer has the width of every layer and the costs that a job would end with, "
        "exactly; a budget that cannot be met is `feasible: false` with the `smallest` reachable costs. To run the plan "
        'with widths of your own, send `"plan": {"layers": [{"name": …, "out": …}]}` with a job, or here to see its costs.'
    ),
    responses={**problems(401, 403, 404, 409, 413, 415), 202: _STILL_PLANNING},
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
async def create_plan(
    request: Request, response: Response, services: ServicesOf, tenant_id: TenantId, once: Once
) -> resources.Plan:
    if media_type(request) != "application/json":
        raise unsupported_media_type(request, "application/json")
    value = await read_json(request)
    body = validate(_job_request, value)
    base_url = resources.base_url(request)

    def store() -> Plan:
        check_options(body, services.catalogue(), dataset=body.dataset is not None)
        with services.database.transaction() as session:
            once.settle(session)
            plan = PlanRepository(session, tenant_id).create(body)
            once.keep(session, 202, resources.Plan.of(plan, base_url), {})
            return plan

    try:
        await once.begin(once.fingerprint(value))
        plan = await run_in_threadpool(store)
    except Replay as replay:
        # The plan is the answer, and it may have been made since: a repeated request waits for it like the first.
        response.headers.update(REPLAYED)
        plan = await run_in_threadpool(_read, services, tenant_id, replay.answer.resource_id)
    services.ring()
    made = await unless_gone(request, partial(_made, services, tenant_id, plan), plan)
    return _answer(made, request, response)


@router.get(
    "/plans/{plan_id}",
    summary="Look at a plan",
    responses={**problems(401, 404), 202: _STILL_PLANNING},
)
def get_plan(
    plan_id: str, request: Request, response: Response, services: ServicesOf, tenant_id: TenantId
) -> resources.Plan:
    return _answer(_read(services, tenant_id, plan_id), request, response)


@router.get(
    "/plans",
    summary="List plans",
    responses=problems(401),
)
def list_plans(
    request: Request,
    services: ServicesOf,
    tenant_id: TenantId,
    page: PageOfPlans,
    model: Annotated[str | None, Query(max_length=32, description="A model's id: only plans for it.")] = None,
) -> resources.PlanList:
    with services.database.read() as session:
        found = PlanRepository(session, tenant_id).list(model, *page)
    base_url = resources.base_url(request)
    return resources.PlanList.of(found, lambda row: resources.Plan.of(row, base_url))


@router.delete(
    "/plans/{plan_id}",
    status_code=204,
    summary="Delete a plan",
    description="One that is still `planning` is given up. A model's plans also go with the model.",
    responses=problems(401, 403, 404),
)
def delete_plan(plan_id: str, services: ServicesOf, tenant_id: TenantId) -> None:
    with services.database.transaction() as session:
        PlanRepository(session, tenant_id).delete(plan_id)


def _read(services: Services, tenant_id: str, plan_id: str) -> Plan:
    with services.database.read() as session:
        return PlanRepository(session, tenant_id).get(plan_id)


async def _made(services: Services, tenant_id: str, plan: Plan) -> Plan:
    """The plan once it is made, or as it is after WAIT_S."""
    if plan.status is PlanStatus.planning and await services.watcher.changed(plan.id, plan.status.value, WAIT_S):
        return await run_in_threadpool(_read, services, tenant_id, plan.id)
    return plan


def _answer(plan: Plan, request: Request, response: Response) -> resources.Plan:
    resource = resources.Plan.of(plan, resources.base_url(request))
    if plan.status is PlanStatus.planning:
        response.status_code = 202
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    response.headers["Location"] = resource.links.self
    return resource
