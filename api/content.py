"""Downloads: an object as a streamed response with validators, digest and byte ranges (RFC 9110, RFC 9530)."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from api.problems import Problem, problems
from store.objects import CHUNK_BYTES, ObjectReader, ObjectStore
from store.tables import UploadedFile

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")


def download(
    request: Request, objects: ObjectStore, *, object_key: str, filename: str, media_type: str, size: int, sha256: str
) -> Response:
    """200 with the whole object, 206 with the range that was asked for, 304 if the client has it. Raises the 416.

    307 to the object store where it serves clients itself: it knows ranges too, under an entity tag of its own.
    """
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": attachment(filename),
        # Whatever is in the file: it never runs as a page of this service.
        "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
    }
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    elsewhere = objects.download_url(object_key, disposition=headers["Content-Disposition"], media_type=media_type)
    if elsewhere is not None and not request.state.head_only:
        # The URL is a key to this one object, for a while; it is for whoever asked.
        return RedirectResponse(elsewhere, status_code=307, headers={"Cache-Control": "private, no-store"})
    start, end, status = 0, size, 200
    if request.headers.get("if-range", etag) == etag:
        wanted = _range(request.headers.get("range", ""), size)
        if wanted is not None:
            (start, end), status = wanted, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.state.head_only:
        return Response(status_code=status, headers=headers, media_type=media_type)
    reader = objects.open_reader(object_key, start, end)
    return StreamingResponse(_chunks(reader), status_code=status, headers=headers, media_type=media_type)


FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    **problems(401, 404, 416),
    200: {"description": "The file", "content": {"application/octet-stream": {}}},
    206: {"description": "The requested range", "content": {"application/octet-stream": {}}},
    304: {"description": "The client has it"},
    307: {"description": "The object store has it, at a URL that works for a while"},
}
"""What a route answers that hands an upload back."""


def uploaded_file(request: Request, objects: ObjectStore, row: UploadedFile) -> Response:
    """An upload as it came, under its own name."""
    return download(
        request,
        objects,
        object_key=row.object_key,
        filename=row.filename,
        media_type="application/octet-stream",
        size=row.size_bytes,
        sha256=row.sha256,
    )


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names this entity tag, by weak comparison."""
    if if_none_match is None:
        return False
    candidates = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in candidates or etag.removeprefix("W/") in candidates


async def _chunks(reader: ObjectReader) -> AsyncIterator[bytes]:
    try:
        while chunk := await run_in_threadpool(reader.read, CHUNK_BYTES):
            yield chunk
    finally:
        reader.close()


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a single range; None where there is none to honour, so that all is sent."""
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    if start >= size:
        raise Problem(
            "range_not_satisfiable", f"The file has {size} bytes.", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, end


def attachment(filename: str) -> str:
    plain = re.sub(r'[^ -~]|["\\%]', "_", filename)
    extended = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{plain}"{extended}'
