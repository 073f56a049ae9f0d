"""Keys, tenants, and the two headers that keep other web pages out of a service on loopback."""

from __future__ import annotations

import pytest

from api.security import keys_required
from store.keys import KeyRepository
from store.settings import Settings
from store.tables import LOCAL_TENANT
from tests.api.conftest import HALF, Service, problem


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_keys_are_needed_everywhere_but_on_loopback(tmp_path):
    def required(**options):
        return keys_required(Settings(data_dir=tmp_path, **options))

    assert [required(host=host) for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8")] == [False] * 4
    assert [required(host=host) for host in ("0.0.0.0", "::", "192.168.1.5", "example.org")] == [True] * 4
    assert required(host="127.0.0.1", require_keys=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST.", "[::1]:9", "box.lan:8000"])
def test_loopback_and_configured_hosts_are_served(serve, host):
    with serve(allowed_hosts=["Box.lan"]) as service:
        assert service.client.get("/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", "localhost@evil.example", ""]
)
def test_other_hosts_are_refused_even_for_reading(service, host):
    answer = service.client.get("/v1/jobs", headers={"Host": host})
    assert "PENNYWEIGHT_ALLOWED_HOSTS" in problem(answer, 421, "host_not_allowed")["detail"]


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example", "file://", "http://[x"],
)
def test_foreign_page_cannot_change_anything(service, origin):
    answer = service.client.post("/v1/models", files={"file": ("a", b"1")}, headers={"Origin": origin})
    problem(answer, 403, "origin_not_allowed")
    assert service.client.get("/v1/models").json()["data"] == []
    assert service.client.get("/v1/models", headers={"Origin": origin}).status_code == 200


def test_own_and_configured_origins_may_change_things(serve):
    with serve(allowed_origins=["https://tools.example.org"]) as service:
        for origin in (service.url, "https://tools.example.org"):
            answer = service.client.post("/v1/models", files={"file": ("a", b"1")}, headers={"Origin": origin})
            assert answer.status_code == 201
        assert answer.headers["access-control-allow-origin"] == "https://tools.example.org"
        preflight = service.client.options(
            "/v1/jobs",
            headers={"Origin": "https://tools.example.org", "Access-Control-Request-Method": "POST"},
        )
        assert preflight.status_code == 200
        allowed = set(preflight.headers["access-control-allow-headers"].lower().split(", "))
        assert {"authorization", "prefer", "if-none-match", "range", "idempotency-key", "last-event-id"} <= allowed
        exposed = set(answer.headers["access-control-expose-headers"].lower().split(", "))
        assert {"etag", "location", "retry-after", "ratelimit", "content-range", "preference-applied"} <= exposed
        assert "POST" in preflight.headers["access-control-allow-methods"]


@pytest.mark.parametrize("authorization", ["Bearer pw_live_wrong", "Basic dTpw", "Bearer", "pw_live_x"])
def test_key_that_is_given_is_checked_even_where_none_is_needed(service, authorization):
    answer = service.client.get("/v1/jobs", headers={"Authorization": authorization})
    problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith('Bearer realm="pennyweight"')


def test_valid_key_is_accepted_and_a_revoked_one_is_not(service):
    key = service.key()
    assert service.client.get("/v1/jobs", headers=bearer(key)).status_code == 200
    with service.database.transaction() as session:
        keys = KeyRepository(session, LOCAL_TENANT)
        keys.revoke(keys.list()[0].id)
    answer = service.client.get("/v1/jobs", headers=bearer(key))
    assert "revoked" in problem(answer, 401, "unauthorized")["detail"]


def routes(service: Service) -> list[tuple[str, str]]:
    document = service.client.get("/openapi.json").json()
    return [(method, path) for path, methods in document["paths"].items() for method in methods]


PUBLIC = {("get", "/healthz"), ("get", "/readyz"), ("get", "/v1/version")}


def test_every_route_but_health_and_version_needs_a_key_when_keys_are_required(serve):
    with serve(require_keys=True) as service:
        found = routes(service)
        assert len(found) > 15
        for method, path in found:
            answer = service.client.request(method, path, headers={"Host": "any.example"})
            if (method, path) in PUBLIC:
                assert answer.status_code == 200
            else:
                problem(answer, 401, "unauthorized")
        key = service.key()
        assert service.client.get("/v1/jobs", headers={"Host": "any.example", **bearer(key)}).status_code == 200


def test_another_tenant_sees_nothing_on_any_route(serve):
    with serve(require_keys=True) as service:
        mine, other = bearer(service.key("mine")), bearer(service.key("other"))
        service.client.headers.update(mine)
        job = service.job()
        dataset = service.client.post("/v1/datasets", files={"file": ("d.npz", b"PK")}).json()
        service.inspect_model()
        service.finish_job()
        plan = service.plan(job["model"], "mine")
        service.finish_plan()
        ids = {
            "model_id": job["model"],
            "dataset_id": dataset["id"],
            "job_id": job["id"],
            "plan_id": plan,
            "name": "model.onnx",
        }
        upload = service.client.post("/v1/uploads", json={"filename": "a", "size": 9, "purpose": "dataset"}).json()
        ids |= {"upload_id": upload["id"], "number": "1"}
        hook = {"url": "https://hooks.example.org/x", "events": ["job.cancelled"]}
        endpoint = service.client.post("/v1/webhook_endpoints", json=hook).json()["id"]
        cancelled = service.job(model=job["model"])["id"]
        service.client.post(f"/v1/jobs/{cancelled}/cancel")
        sent = service.client.get(f"/v1/webhook_endpoints/{endpoint}/deliveries").json()["data"]
        ids |= {"endpoint_id": endpoint, "delivery_id": sent[0]["id"]}
        with_ids = [(method, path) for method, path in routes(service) if "{" in path]
        assert len(with_ids) >= 12
        for method, path in with_ids:
            # A part without its bytes is a 422 of its owner.
            body = {"json": {}} if method == "patch" else {}
            for headers, expected in ((other, {404}), (mine, {200, 201, 204, 409, 422})):
                if headers is mine and method == "delete":
                    continue
                answer = service.client.request(method, path.format(**ids), headers=headers, **body)
                assert answer.status_code in expected, (method, path, answer.text)
        for path in ("/v1/models", "/v1/datasets", "/v1/uploads", "/v1/plans", "/v1/jobs", "/v1/webhook_endpoints"):
            assert service.client.get(path, headers=other).json()["data"] == []
            assert len(service.client.get(path).json()["data"]) >= 1
        foreign = service.client.post("/v1/jobs", json={"model": job["model"], "budget": HALF}, headers=other)
        problem(foreign, 404, "not_found")
