"""A page among the artifacts is a file to download and never a page of the service."""

from starlette.requests import Request

from api.content import download
from store.objects import LocalObjects


def test_a_page_is_sent_as_an_attachment_that_may_not_run(tmp_path):
    objects = LocalObjects(tmp_path)
    request = Request({"type": "http", "method": "HEAD", "headers": [], "state": {"head_only": True}})
    response = download(
        request,
        objects,
        object_key="tenants/local/jobs/job_1/1/report.html",
        filename="report.html",
        media_type="text/html",
        size=3,
        sha256="ab" * 32,
    )
    assert response.headers["content-disposition"] == 'attachment; filename="report.html"'
    assert response.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
