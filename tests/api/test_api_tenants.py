"""What a key may do, and how often it may call."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select, update
from typer.testing import CliRunner

from api.rates import RateLimiter
from pennyweightd.__main__ import app as pennyweightd
from store.database import Database
from store.keys import KeyRepository
from store.tables import LOCAL_TENANT, ApiKey, Scope
from tests.api.conftest import CHECKPOINT, Service, problem

FILE = {"file": ("net.pt", CHECKPOINT)}
HOOK = {"url": "https://hooks.example.org/x"}


def key(service: Service, scope: Scope, **life: float) -> dict[str, str]:
    with service.database.transaction() as session:
        ends = service.database.now(session) + timedelta(**life) if life else None
        secret = KeyRepository(session, LOCAL_TENANT).create("k", scope, ends)[1]
    return {"Authorization": f"Bearer {secret}"}


def test_key_may_do_what_its_scope_says_on_every_route(serve):
    with serve(require_keys=True) as service:
        read, write, admin = (key(service, scope) for scope in Scope)
        document = service.client.get("/openapi.json").json()
        admin_routes = set()
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if "security" not in operation:
                    continue

                def code(headers, method=method, path=path):
                    answer = service.client.request(method, path, headers=headers)
                    return answer.json().get("code") if answer.status_code == 403 else None

                refused = [code(headers) for headers in (read, write, admin)]
                assert refused[2] is None, (method, path)
                if refused[1] is not None:
                    admin_routes.add((method, path.removeprefix("/v1/webhook_endpoints")))
                unsafe = method not in ("get", "head")
                expected = "insufficient_scope" if unsafe or refused[1] else None
                assert refused[0] == expected, (method, path)
        assert admin_routes == {
            ("post", ""), ("patch", "/{endpoint_id}"), ("delete", "/{endpoint_id}"), ("get", "/{endpoint_id}/secret"),
        }  # fmt: skip
        answer = service.client.post("/v1/models", headers=read, files=FILE)
        assert "keys create --scope write" in problem(answer, 403, "insufficient_scope")["detail"]
        assert service.client.post("/v1/models", headers=write, files=FILE).status_code == 201
        assert service.client.post("/v1/webhook_endpoints", headers=admin, json=HOOK).status_code == 201


def test_key_ends_at_its_time(serve):
    with serve(require_keys=True) as service:
        headers = key(service, Scope.read, hours=1)
        assert service.client.get("/v1/jobs", headers=headers).status_code == 200
        with service.database.transaction() as session:
            session.execute(update(ApiKey).values(expires_at=service.database.now(session)))
        assert "expired" in problem(service.client.get("/v1/jobs", headers=headers), 401, "unauthorized")["detail"]


def test_keys_are_made_listed_and_ended_on_the_command_line(tmp_path):
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(pennyweightd, ["keys", *arguments, "--data-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return result.stdout

    made = run("create", "laptop", "--tenant", "acme", "--scope", "read", "--expires", "30")
    assert made.startswith("pw_live_")
    database = Database(f"sqlite:///{tmp_path}/pennyweight.db")
    with database.read() as session:
        row = session.scalars(select(ApiKey)).one()
        assert (row.tenant_id, row.scope, row.name) == ("acme", Scope.read, "laptop")
        assert timedelta(days=29.9) < row.expires_at - row.created_at < timedelta(days=30.1)
    assert row.id[:12] in run("list").replace("\n", "") or "acme" in run("list")
    assert "Revoked" in run("revoke", row.id)
    result = CliRunner().invoke(pennyweightd, ["keys", "create", "x", "--tenant", "A B", "--data-dir", str(tmp_path)])
    assert result.exit_code != 0
    database.dispose()


def test_bucket_fills_again_at_its_rate():
    now = [100.0]
    rates = RateLimiter(60, clock=lambda: now[0])
    taken = [rates.take("a") for _ in range(61)]
    assert [one.retry_after_s for one in taken] == [None] * 60 + [1]
    assert taken[0].headers == {"RateLimit-Policy": '"key";q=60;w=60', "RateLimit": '"key";r=59;t=1'}
    assert taken[60].headers["RateLimit"] == '"key";r=0;t=60'
    assert rates.take("b").remaining == 59
    now[0] += 2
    assert [rates.take("a").retry_after_s for _ in range(3)] == [None, None, 1]
    now[0] += 1000
    assert rates.take("a").remaining == 59


def test_key_that_calls_too_often_is_told_when_to_come_back(serve):
    with serve(require_keys=True, rate_limit_per_minute=5) as service:
        mine, other = (key(service, Scope.read) for _ in range(2))
        answers = [service.client.get("/v1/jobs", headers=mine) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        assert answers[0].headers["ratelimit-policy"] == '"key";q=5;w=60'
        assert answers[0].headers["ratelimit"] == '"key";r=4;t=12'
        problem(answers[5], 429, "too_many_requests")
        assert 1 <= int(answers[5].headers["retry-after"]) <= 12
        assert answers[5].headers["ratelimit"].startswith('"key";r=0')
        assert service.client.get("/v1/jobs", headers=other).status_code == 200
        assert "ratelimit" not in service.client.get("/healthz").headers
    with serve(rate_limit_per_minute=0) as service:
        assert "ratelimit" not in service.client.get("/v1/jobs", headers=key(service, Scope.read)).headers
