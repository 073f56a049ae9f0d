"""Polls that learn that nothing has changed take a shorter way than others: it must hold everything that the long one does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from store.keys import KeyRepository
from store.tables import LOCAL_TENANT, Job
from tests.api.conftest import Service, problem

OTHER = "other"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_poll_without_news_is_a_304_with_the_headers_of_the_job(service: Service, prefix, method):
    job = service.job()
    path = f"{prefix}/jobs/{job['id']}"
    etag = service.client.get(path).headers["etag"]
    for known in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
        answer = service.client.request(method, path, headers={"If-None-Match": known, "X-Request-Id": "mine"})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["x-request-id"] == "mine"
        assert answer.headers["cache-control"] == "private, no-cache"
    assert service.client.request(method, path, headers={"If-None-Match": 'W/"99"'}).status_code == 200


def test_job_of_another_tenant_is_not_there_whatever_the_poll_knows(serve):
    with serve(require_keys=True) as service:
        mine, other = bearer(service.key()), bearer(service.key(OTHER))
        model = service.client.post("/v1/models", headers=mine, files={"file": ("n.pt", b"w" * 99)}).json()["id"]
        body = {"model": model, "budget": {"params": {"max": 9}}}
        job = service.client.post("/v1/jobs", headers=mine, json=body).json()
        path, known = f"/v1/jobs/{job['id']}", {"If-None-Match": "*"}
        assert service.client.get(path, headers={**mine, **known}).status_code == 304
        problem(service.client.get(path, headers={**other, **known}), 404, "not_found")
        problem(service.client.get(path, headers=known), 401, "unauthorized")
        for authorization in ("Bearer pw_live_wrong", "Basic dTpw", "Bearer", mine["Authorization"].split()[1]):
            answer = service.client.get(path, headers={"Authorization": authorization, **known})
            assert problem(answer, 401, "unauthorized")["instance"] == path


def test_revoked_key_polls_no_more_from_the_next_request_on(serve):
    with serve() as service:
        job = service.job()
        with service.database.transaction() as session:
            key, secret = KeyRepository(session, LOCAL_TENANT).create("laptop")
        headers = {**bearer(secret), "If-None-Match": "*"}
        assert service.client.get(f"/v1/jobs/{job['id']}", headers=headers).status_code == 304
        with service.database.transaction() as session:
            KeyRepository(session, LOCAL_TENANT).revoke(key.id)
        problem(service.client.get(f"/v1/jobs/{job['id']}", headers=headers), 401, "unauthorized")


def test_polls_without_news_count_against_the_rate_and_in_the_metrics(serve):
    with serve(rate_limit_per_minute=3, allowed_origins=["https://tools.example.org"]) as service:
        job = service.job()
        headers = {**bearer(service.key()), "If-None-Match": "*", "Origin": "https://tools.example.org"}
        answers = [service.client.get(f"/jobs/{job['id']}", headers=headers) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [304, 304, 304, 429]
        assert answers[0].headers["ratelimit"].startswith('"key";r=2')
        assert {answer.headers["access-control-allow-origin"] for answer in answers} == {"https://tools.example.org"}
        assert 1 <= int(answers[3].headers["retry-after"]) <= 20
        problem(answers[3], 429, "too_many_requests")
        told = service.client.get("/metrics").text
        assert 'method="GET",route="/v1/jobs/{job_id}",status="304"} 3.0' in told


def test_many_polls_at_once_each_get_their_own_answer(serve):
    with serve(require_keys=True) as service:
        keys = [bearer(service.key(name)) for name in (LOCAL_TENANT, OTHER)]
        jobs = []
        for key in keys:
            model = service.client.post("/v1/models", headers=key, files={"file": ("n.pt", b"w" * 99)}).json()["id"]
            body = {"model": model, "budget": {"params": {"max": 9}}}
            jobs.append(service.client.post("/v1/jobs", headers=key, json=body).json()["id"])

        def ask(index: int) -> tuple[int, int]:
            whose, which = index % 2, index // 2 % 2
            headers = {**keys[whose], "If-None-Match": "*"}
            answer = service.client.get(f"/v1/jobs/{jobs[which]}", headers=headers)
            return (304 if whose == which else 404, answer.status_code)

        with ThreadPoolExecutor(16) as threads:
            assert all(expected == found for expected, found in threads.map(ask, range(200)))


def test_poll_after_a_change_is_never_told_that_nothing_changed(serve):
    with serve() as service:
        jobs = [service.job()["id"] for _ in range(4)]

        def change_and_ask(job: str) -> list[int]:
            statuses = []
            for _ in range(25):
                known = {"If-None-Match": service.client.get(f"/v1/jobs/{job}").headers["etag"]}
                statuses.append(service.client.get(f"/v1/jobs/{job}", headers=known).status_code)
                with service.database.transaction() as session:
                    session.execute(update(Job).where(Job.id == job).values(version=Job.version + 1))
                statuses.append(service.client.get(f"/v1/jobs/{job}", headers=known).status_code)
            return statuses

        with ThreadPoolExecutor(len(jobs)) as threads:
            assert list(threads.map(change_and_ask, jobs)) == [[304, 200] * 25] * len(jobs)
