"""Plans: short work that waits for its model, and ends with an answer."""

from __future__ import annotations

import pytest

from store import work
from store.contract import SHORT_WORK, PlanStatus, WorkKind
from store.errors import Conflict, NotFound
from store.models import ModelRepository
from store.tables import LOCAL_TENANT, Work
from tests.store.house import OTHER_TENANT, UNSAFE, House, inspected_model, lose, nothing_claimable, plan_outcome


def test_a_plan_waits_for_its_model_and_is_short_work(house: House) -> None:
    model = house.add_model(ready=False)
    plan = house.add_plan(model, seed=5)
    assert nothing_claimable(house, kinds={WorkKind.plan})
    work.finish_model(house.database, house.claim(WorkKind.inspect_model), inspected_model())
    claim = house.claim(*SHORT_WORK, id=plan)
    assert (claim.kind, claim.max_runtime_s) == (WorkKind.plan, 300)
    assert (claim.subject.request["seed"], claim.subject.model.id) == (5, model)
    work.finish_plan(house.database, claim, plan_outcome())
    row = house.plan(plan)
    assert (row.status, row.error, row.result["layers"][0]["after"]["out"]) == (PlanStatus.ready, None, 9)
    assert row.finished_at >= row.created_at
    assert nothing_claimable(house)


def test_a_rejected_upload_fails_the_plans_that_wait_for_it_with_its_code(house: House) -> None:
    good = house.add_model()
    model, dataset = house.add_model(ready=False), house.add_dataset(ready=False)
    waits, waits_for_data = house.add_plan(model), house.add_plan(good, dataset=dataset)
    work.reject(house.database, house.claim(WorkKind.inspect_model, id=model), UNSAFE)
    error = house.plan(waits).error
    assert (house.plan(waits).status, error["code"], error["param"]) == (PlanStatus.failed, "unsafe_model", "/model")
    assert model in error["message"]
    assert house.plan(waits_for_data).status is PlanStatus.planning
    work.reject(house.database, house.claim(WorkKind.inspect_dataset, id=dataset), UNSAFE)
    assert house.plan(waits_for_data).error["param"] == "/dataset"
    assert nothing_claimable(house)


def test_a_plan_is_lost_three_times_and_then_fails(house: House) -> None:
    plan = house.add_plan(house.add_model())
    for _ in range(3):
        assert house.plan(plan).status is PlanStatus.planning
        lose(house, house.claim(WorkKind.plan))
    row = house.plan(plan)
    assert (row.status, row.error["code"]) == (PlanStatus.failed, "worker_lost")
    assert "making this plan" in row.error["message"]


def test_a_model_in_a_plan_that_is_being_made_stays_and_takes_its_plans_with_it_later(house: House) -> None:
    model, other = house.add_model(), house.add_model()
    plan, kept = house.add_plan(model), house.add_plan(other)
    with pytest.raises(Conflict, match=plan), house.database.transaction() as session:
        ModelRepository(session, LOCAL_TENANT).delete(model)
    for id in (plan, kept):
        work.finish_plan(house.database, house.claim(WorkKind.plan, id=id), plan_outcome())
    with house.database.transaction() as session:
        ModelRepository(session, LOCAL_TENANT).delete(model)
    with pytest.raises(NotFound):
        house.plan(plan)
    assert house.plan(kept).status is PlanStatus.ready
    with house.database.read() as session:
        assert session.get(Work, plan) is None and session.get(Work, kept) is not None


def test_a_plan_belongs_to_its_tenant(house: House) -> None:
    plan = house.add_plan(house.add_model())
    with pytest.raises(NotFound):
        house.plan(plan, OTHER_TENANT)
    with pytest.raises(NotFound) as missing:
        house.add_plan(house.add_model(), OTHER_TENANT)
    assert missing.value.param == "/model"
