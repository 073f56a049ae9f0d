"""Plans over HTTP: an answer within the time that a caller waits, or a place to come back to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import func, select

from store.contract import WorkKind
from store.tables import Plan
from tests.api.conftest import CATALOGUE, HALF, NO_MODEL, OUTCOME, pointers, problem


def ask(service, model: str, **options):
    return service.client.post("/v1/plans", json={"model": model, "budget": HALF, **options})


@contextmanager
def once_asked(service, act: Callable[[], None]) -> Iterator[None]:
    """`act` as soon as a plan has been asked for, while the block waits for it."""

    def watch() -> None:
        while not ended.is_set():
            with service.database.read() as session:
                asked = session.scalar(select(func.count()).select_from(Plan))
            if asked:
                return act()
            ended.wait(0.05)

    ended = threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_plan_comes_back_with_the_answer_and_can_be_read_again(service):
    model = service.upload()["id"]
    service.inspect_model()
    with service.planner():
        answer = ask(service, model, plan={"layers": [{"name": "layer1.0.conv1", "out": 9}]})
    plan = answer.json()
    assert (answer.status_code, plan["object"], plan["status"], plan["model"]) == (200, "plan", "ready", model)
    assert {name: plan[name] for name in ("feasible", "predicted", "layers", "frozen", "note")} == {
        name: OUTCOME[name] for name in ("feasible", "predicted", "layers", "frozen", "note")
    }
    assert (plan["error"], plan["smallest"]) == (None, None)
    assert plan["request"]["plan"] == {"layers": [{"name": "layer1.0.conv1", "out": 9}]}
    assert answer.headers["location"] == plan["links"]["self"] == f"{service.url}/v1/plans/{plan['id']}"
    assert "retry-after" not in answer.headers
    assert len(service.rings) == 2
    again = service.client.get(plan["links"]["self"])
    assert (again.status_code, again.json()) == (200, plan)
    assert service.client.get(f"/plans/{plan['id']}").json() == plan


def test_infeasible_budget_is_an_answer_with_the_smallest_and_the_error_of_a_job(service):
    model = service.upload()["id"]
    service.inspect_model()
    error = {"code": "target_infeasible", "message": "The smallest has 7.", "details": {"smallest": {"flops": 7}}}
    with service.planner(feasible=False, smallest={"flops": 7}, error=error):
        plan = ask(service, model).json()
    assert (plan["status"], plan["feasible"], plan["smallest"]) == ("ready", False, {"flops": 7})
    assert (plan["error"]["code"], plan["error"]["message"]) == ("target_infeasible", "The smallest has 7.")


def test_plan_waits_for_the_inspection_of_its_model(service):
    model = service.upload()["id"]
    with service.planner(), once_asked(service, service.inspect_model):
        assert ask(service, model).json()["status"] == "ready"


def test_plan_on_a_model_that_turns_out_bad_fails_with_its_code(service):
    model = service.upload()["id"]
    with once_asked(service, service.reject_model):
        answer = ask(service, model)
    plan = answer.json()
    assert (answer.status_code, plan["status"], plan["feasible"]) == (200, "failed", None)
    assert (plan["error"]["code"], plan["error"]["param"]) == ("unsafe_model", "/model")
    assert problem(ask(service, model), 422, "upload_rejected")["errors"][0]["code"] == "unsafe_model"


def test_plan_that_is_deleted_while_it_is_waited_for_is_a_404(service):
    model = service.upload()["id"]

    def delete_it() -> None:
        plan = service.client.get("/v1/plans").json()["data"][0]["id"]
        assert service.client.delete(f"/v1/plans/{plan}").status_code == 204

    with once_asked(service, delete_it):
        problem(ask(service, model), 404, "not_found")


def test_slow_plan_is_a_202_with_a_place_to_come_back_to(service, monkeypatch):
    monkeypatch.setattr("api.plans.WAIT_S", 0.3)
    model = service.upload()["id"]
    started = time.monotonic()
    answer = ask(service, model)
    assert 0.3 <= time.monotonic() - started < 25
    plan = answer.json()
    assert (answer.status_code, plan["status"], plan["feasible"], plan["layers"]) == (202, "planning", None, [])
    assert (answer.headers["location"], answer.headers["retry-after"]) == (plan["links"]["self"], "1")
    early = service.client.get(plan["links"]["self"])
    assert (early.status_code, early.headers["retry-after"]) == (202, "1")
    problem(service.client.delete(f"/v1/models/{model}"), 409, "in_use")
    service.inspect_model()
    service.finish_plan()
    assert service.client.get(plan["links"]["self"]).json()["status"] == "ready"
    assert service.client.delete(f"/v1/models/{model}").status_code == 204
    problem(service.client.get(plan["links"]["self"]), 404, "not_found")


def test_waiting_plans_hold_neither_threads_nor_connections(service, monkeypatch):
    """More waiting requests than there are threads in the pool, and another request is still answered at once."""
    monkeypatch.setattr("api.plans.WAIT_S", 100)
    service.client.timeout = 120
    model = service.upload()["id"]
    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(ask, service, model) for _ in range(60)]
        deadline = time.monotonic() + 80
        while service.services.watcher.waiting < 60 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert service.client.get("/v1/models").status_code == 200
        assert not any(answer.done() for answer in waiting)
        service.stop_waiting()
        assert {answer.result().status_code for answer in waiting} == {202}


def test_client_that_goes_away_ends_the_waiting_and_not_the_plan(service):
    import httpx

    model = service.upload()["id"]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service.url}/v1/plans", json={"model": model, "budget": HALF}, timeout=0.5)
    deadline = time.monotonic() + 20
    while service.client.get("/v1/plans").json()["data"] == [] and time.monotonic() < deadline:
        time.sleep(0.1)
    service.inspect_model()
    assert service.claim(WorkKind.plan) is not None


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"budget": {}}, "/budget"),
        ({"methods": [{"type": "wishful"}]}, "/methods/0/type"),
        ({"accuracy": {"max_drop": 0.1}}, "/accuracy"),
        ({"plan": {"layers": [{"name": "conv1"}]}}, "/plan/layers/0/out"),
        ({"wdiths": {}}, "/wdiths"),
    ],
)
def test_request_that_makes_no_sense_is_refused_as_a_job_would_be(service, change, pointer):
    service.publish(CATALOGUE)
    assert pointer in pointers(ask(service, service.upload()["id"], **change))
    assert service.claim(WorkKind.plan) is None


def test_plan_needs_a_model_and_json(service):
    assert problem(ask(service, NO_MODEL), 404, "not_found")["errors"][0]["pointer"] == "/model"
    form = service.client.post("/v1/plans", files={"model": ("net.pt", b"x")})
    problem(form, 415, "unsupported_media_type")
    problem(service.client.get("/v1/plans/pln_nowhere"), 404, "not_found")


def test_plans_are_listed_newest_first_and_by_model_and_deleted_even_in_the_making(service):
    first, second = (service.upload()["id"] for _ in "ab")
    plans = [service.plan(model) for model in (first, second, first)]

    def listed(query: str = "") -> list[str]:
        return [plan["id"] for plan in service.client.get(f"/v1/plans{query}").json()["data"]]

    assert listed() == plans[::-1]
    assert listed(f"?model={first}") == [plans[2], plans[0]]
    page = service.client.get("/v1/plans?limit=2").json()
    assert (page["has_more"], page["next"]) == (True, plans[1])
    assert listed(f"?limit=2&after={page['next']}") == [plans[0]]
    assert service.client.delete(f"/v1/plans/{plans[0]}").status_code == 204
    problem(service.client.get(f"/v1/plans/{plans[0]}"), 404, "not_found")
    problem(service.client.delete(f"/v1/plans/{plans[0]}"), 404, "not_found")
    assert listed() == plans[:0:-1]
    service.inspect_model()
    service.inspect_model()
    service.finish_plan()
    assert service.client.get(f"/v1/plans/{plans[1]}").json()["status"] == "ready"


def test_rejected_model_ends_its_plans_but_not_one_that_was_deleted(service):
    model = service.upload()["id"]
    kept, gone = service.plan(model), service.plan(model)
    assert service.client.delete(f"/v1/plans/{gone}").status_code == 204
    service.reject_model()
    assert service.client.get(f"/v1/plans/{kept}").json()["error"]["code"] == "unsafe_model"
