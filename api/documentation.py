"""`/openapi.json`, and the same as one page that needs no script, no other file and no other host."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic.json_schema import models_json_schema

from api.operations import VERSION
from api.problems import MEDIA_TYPE, ProblemDocument
from api.security import keys_required
from api.upload_requests import UploadCompletion, UploadRequest
from api.webhooks import EndpointChange, EndpointRequest
from store.contract import Conversion, JobOptions, JobRequest, Normalization
from store.settings import Settings

pages = APIRouter(include_in_schema=False)

_REF = "#/components/schemas/{model}"
_DESCRIPTION = (
    "Upload a trained network and a budget, get back a smaller one that meets it, verified. Every route is also served "
    "without the `/v1` prefix. Every 4xx and 5xx is an `application/problem+json` document."
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def openapi_document(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """The document of `app`, with the bodies that our own readers take and the security that `settings` mean."""
    document = get_openapi(
        title="Pennyweight",
        version=VERSION,
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        routes=app.routes,
    )
    schemas = document["components"]["schemas"]
    bodies = [
        (model, "validation")
        for model in (
            JobRequest,
            JobOptions,
            Normalization,
            Conversion,
            ProblemDocument,
            UploadRequest,
            UploadCompletion,
            EndpointRequest,
            EndpointChange,
        )
    ]
    _, definitions = models_json_schema(bodies, ref_template=_REF)
    for name, schema in definitions["$defs"].items():
        schemas.setdefault(name, schema)
    for operations in document["paths"].values():
        for operation in operations.values():
            if operation.pop("security", None):
                operation["security"] = [{"ApiKey": []}] if keys_required(settings) else [{}, {"ApiKey": []}]
    return document


@pages.get("/")
def index(request: Request) -> RedirectResponse:
    return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")


@pages.get("/docs")
def docs(request: Request) -> HTMLResponse:
    page = render(request.app.openapi(), root_path=request.scope.get("root_path", ""))
    return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})


def render(document: dict[str, Any], root_path: str = "") -> str:
    """An OpenAPI document as HTML: every route with what it takes and gives, then every schema."""
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        f'<details id="{escape(name)}"><summary>{escape(name)}</summary><pre>{_linked(schema)}</pre></details>'
        for name, schema in sorted(document["components"]["schemas"].items())
    ]
    info = document["info"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1><p>{escape(info['description'])}"
        f' <a href="{escape(root_path)}/openapi.json">openapi.json</a></p>'
        f"<h2>Routes</h2>{''.join(operations)}<h2>Schemas</h2>{''.join(schemas)}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = [
        f"<tr><td><code>{escape(p['name'])}</code><td>{escape(p['in'])}<td>{escape(p.get('description', ''))}"
        for p in operation.get("parameters", [])
    ]
    bodies = [
        f"<tr><td><code>{escape(kind)}</code><td>body<td><pre>{_linked(content.get('schema', {}))}</pre>"
        for kind, content in operation.get("requestBody", {}).get("content", {}).items()
    ]
    answers = [
        f"<tr><td>{escape(status)}<td>answer<td>{escape(answer['description'])} "
        + " ".join(
            _linked(c["schema"])
            for kind, c in answer.get("content", {}).items()
            if "schema" in c and kind != MEDIA_TYPE
        )
        for status, answer in sorted(operation["responses"].items())
    ]
    return (
        f"<details><summary><b>{escape(method.upper())}</b> <code>{escape(path)}</code> "
        f"{escape(operation.get('summary', ''))}</summary><p>{escape(operation.get('description', ''))}</p>"
        f"<table>{''.join(parameters + bodies + answers)}</table></details>"
    )


def _linked(schema: dict[str, Any]) -> str:
    """A schema as text whose references are links."""
    text = escape(json.dumps(schema, indent=2, ensure_ascii=False), quote=False)
    prefix = _REF.format(model="")
    pieces = text.split(f'"{prefix}')
    linked = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split('"', 1)
        linked.append(f'<a href="#{name}">{name}</a>{rest}')
    return "".join(linked)


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "details{border-bottom:1px solid #8884;padding:.3rem 0}summary{cursor:pointer}b{display:inline-block;width:4.5rem}"
    "table{border-collapse:collapse}td{padding:.15rem 1rem .15rem 0;vertical-align:top}pre{margin:0;white-space:pre-wrap}"
    "small{color:#888;font-weight:400}@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}}"
)
