"""Completing an upload in parts: they become one file, that a model or a dataset, once however often it is asked."""

from __future__ import annotations

from api import resources
from api.dependencies import Services
from api.forms import stem
from api.problems import Problem
from api.upload_requests import SentPart
from api.uploads import check_head
from store.datasets import DatasetRepository
from store.errors import NotFound, PartsGone
from store.models import ModelRepository
from store.parts import PartUpload
from store.tables import Upload as UploadRow
from store.uploads import UploadRepository, parts_of

_HEAD_BYTES = 16


def complete(
    services: Services, tenant_id: str, upload_id: str, sent: list[SentPart] | None
) -> resources.Model | resources.Dataset:
    """What the upload becomes, made if it is not there yet; `sent` is what the client believes to have sent.

    Raises NotFound, PartsIncomplete, and Problem for a file that is not what was announced, which is then forgotten.
    """
    with services.database.read() as session:
        row = UploadRepository(session, tenant_id).get(upload_id)
    if row.completed_at is not None:
        return _resource(services, tenant_id, row)
    upload = parts_of(row)
    if sent is not None:
        _check_sent(services, upload, sent)
    assembled = services.objects.parts.complete(upload)
    try:
        _check_file(services, row, assembled.sha256)
        with services.database.transaction() as session:
            uploads = UploadRepository(session, tenant_id)
            locked = uploads.lock(upload_id)
            if locked.completed_at is None:
                _register(
                    ModelRepository(session, tenant_id), DatasetRepository(session, tenant_id), row, assembled.sha256
                )
                uploads.complete(locked)
    except Problem:
        # Not what was announced, and never will be.
        _forget(services, tenant_id, upload_id)
        services.objects.delete(upload.key)
        raise
    except NotFound:
        # Given up in the meantime, or completed by another call and then forgotten.
        try:
            return _resource(services, tenant_id, row)
        except NotFound:
            services.objects.delete(upload.key)
        raise
    return _resource(services, tenant_id, row)


def _check_sent(services: Services, upload: PartUpload, sent: list[SentPart]) -> None:
    """What the client believes to have sent must be what is there; a part sent twice may not be."""
    try:
        there = {part.number: part.etag.strip('"') for part in services.objects.parts.list(upload)}
    except PartsGone:
        return  # an earlier call has put them together
    for index, part in enumerate(sent):
        if part.number > upload.part_count:
            raise Problem.at(
                f"/parts/{index}/number", "invalid", f"The upload has {upload.part_count} parts, no part {part.number}."
            )
        if part.number in there and part.etag.strip('"') != there[part.number]:
            raise Problem.at(
                f"/parts/{index}/etag",
                "mismatch",
                f"Part {part.number} is there with the etag {there[part.number]}: it was sent again. "
                "Send it once more.",
            )
    unnamed = sorted(set(range(1, upload.part_count + 1)) - {part.number for part in sent})
    if unnamed:
        raise Problem.at("/parts", "incomplete", f"Name all {upload.part_count} parts: {unnamed[0]} is not among them.")


def _check_file(services: Services, row: UploadRow, sha256: str) -> None:
    if row.sha256 is not None and sha256 != row.sha256:
        raise Problem(
            "digest_mismatch",
            f"The file has sha256 {sha256}, and {row.sha256} was announced. The upload is forgotten; start a new one.",
        )
    with services.objects.open_reader(row.object_key, 0, _HEAD_BYTES) as reader:
        head = reader.read()
    check_head(row.filename, row.size_bytes, head, "/filename", is_model=row.purpose == "model")


def _register(models: ModelRepository, datasets: DatasetRepository, row: UploadRow, sha256: str) -> None:
    fields = dict(row.fields)
    file = {
        "id": row.resource_id,
        "filename": row.filename,
        "name": fields.pop("name", None) or stem(row.filename),
        "object_key": row.object_key,
        "size_bytes": row.size_bytes,
        "sha256": sha256,
    }
    (models if row.purpose == "model" else datasets).create(**file, **fields)


def _resource(services: Services, tenant_id: str, row: UploadRow) -> resources.Model | resources.Dataset:
    with services.database.read() as session:
        if row.purpose == "model":
            return resources.Model.of(ModelRepository(session, tenant_id).get(row.resource_id))
        return resources.Dataset.of(DatasetRepository(session, tenant_id).get(row.resource_id))


def _forget(services: Services, tenant_id: str, upload_id: str) -> None:
    try:
        with services.database.transaction() as session:
            UploadRepository(session, tenant_id).delete(upload_id)
    except NotFound:
        return
