"""An upload in parts as clients see it: what is there of it, and where the rest is to be sent."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, Field

from api import resources
from api.dependencies import Services
from store.parts import StoredPart
from store.tables import Upload as UploadRow
from store.uploads import parts_of


class UploadPart(BaseModel):
    """PUT `size` bytes to `url`; `etag` is that of the part once it is there."""

    number: int
    size: int
    url: str
    etag: str | None = None


class UploadSummary(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    status: Literal["open", "completed"]
    purpose: Literal["model", "dataset"]
    filename: str
    size: int
    sha256: str | None
    part_size: int
    request: dict[str, Any] = Field(description="The other fields that it was announced with.")
    resource: str | None = Field(description="The id of the model or dataset that it has become.")
    complete_url: str
    created_at: datetime
    expires_at: datetime


class Upload(UploadSummary):
    parts: list[UploadPart] = Field(
        description="Empty once it is completed. The URLs work for a while; GET makes new ones."
    )


class UploadList(resources.Listing):
    data: list[UploadSummary]


def summary(row: UploadRow, request: Request) -> dict[str, Any]:
    """The fields of an `UploadSummary`."""
    return {
        "id": row.id,
        "status": "open" if row.completed_at is None else "completed",
        "purpose": row.purpose,
        "filename": row.filename,
        "size": row.size_bytes,
        "sha256": row.sha256,
        "part_size": row.part_size_bytes,
        "request": row.fields,
        "resource": None if row.completed_at is None else row.resource_id,
        "complete_url": f"{upload_url(request, row.id)}/complete",
        "created_at": row.created_at,
        "expires_at": row.expires_at,
    }


def shown(row: UploadRow, request: Request, services: Services, there: Iterable[StoredPart]) -> Upload:
    upload, etags = parts_of(row), {part.number: part.etag for part in there}
    numbers = () if row.completed_at is not None else range(1, upload.part_count + 1)
    parts = [
        UploadPart(
            number=number,
            size=upload.size_of(number),
            url=services.objects.parts.url(upload, number) or part_url(request, row.id, number),
            etag=etags.get(number),
        )
        for number in numbers
    ]
    return Upload(**summary(row, request), parts=parts)


def upload_url(request: Request, upload_id: str) -> str:
    return f"{resources.base_url(request)}/v1/uploads/{upload_id}"


def part_url(request: Request, upload_id: str, number: int) -> str:
    return f"{upload_url(request, upload_id)}/parts/{number}"
