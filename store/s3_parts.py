"""S3's own multipart uploads as our parts: clients send them to presigned URLs, or through us where there is none."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from store.errors import ObjectMissing, PartsGone
from store.objects import CHUNK_BYTES
from store.parts import Assembled, PartUpload, StoredPart, check_complete
from store.s3_connection import S3Connection
from store.s3_streams import S3Reader


class S3Parts:
    """Multipart uploads of one bucket, under one prefix of it."""

    def __init__(self, connection: S3Connection) -> None:
        self._connection = connection

    def begin(self, key: str, size: int, part_size: int) -> PartUpload:
        answer = self._connection.call("create_multipart_upload", key=key)
        return PartUpload(key, answer["UploadId"], size, part_size)

    def write(self, upload: PartUpload, number: int) -> S3PartWriter:
        return S3PartWriter(self._connection, upload, number)

    def url(self, upload: PartUpload, number: int) -> str | None:
        # The length is part of what is signed: nobody can store more than was announced.
        return self._connection.presigned(
            "upload_part",
            key=upload.key,
            UploadId=upload.handle,
            PartNumber=number,
            ContentLength=upload.size_of(number),
        )

    def list(self, upload: PartUpload) -> Sequence[StoredPart]:
        found: list[StoredPart] = []
        more: dict[str, Any] = {}
        while True:
            page = self._connection.call("list_parts", key=upload.key, UploadId=upload.handle, **more)
            found += [StoredPart(part["PartNumber"], part["Size"], part["ETag"]) for part in page.get("Parts", ())]
            if not page.get("IsTruncated"):
                return found
            more = {"PartNumberMarker": page["NextPartNumberMarker"]}

    def complete(self, upload: PartUpload) -> Assembled:
        try:
            parts = self.list(upload)
            check_complete(upload, parts)
            self._connection.call(
                "complete_multipart_upload",
                key=upload.key,
                UploadId=upload.handle,
                MultipartUpload={"Parts": [{"PartNumber": part.number, "ETag": part.etag} for part in parts]},
            )
        except PartsGone:
            # Completed before, by a call whose answer was lost or that runs at this moment; or aborted.
            try:
                if self._connection.call("head_object", key=upload.key)["ContentLength"] != upload.size:
                    raise
            except ObjectMissing:
                raise PartsGone() from None
        return self._digested(upload.key)

    def abort(self, upload: PartUpload) -> None:
        self._abort(upload.key, upload.handle)

    def abort_older_than(self, age_s: float) -> int:
        before = datetime.now(UTC) - timedelta(seconds=age_s)
        prefix, aborted = self._connection.name_of(""), 0
        more: dict[str, Any] = {}
        while True:
            page = self._connection.call("list_multipart_uploads", Prefix=prefix, **more)
            for entry in page.get("Uploads", ()):
                if entry["Initiated"] < before:
                    self._abort(entry["Key"][len(prefix) :], entry["UploadId"])
                    aborted += 1
            if not page.get("IsTruncated"):
                return aborted
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _abort(self, key: str, upload_id: str) -> None:
        try:
            self._connection.call("abort_multipart_upload", key=key, UploadId=upload_id)
        except (PartsGone, ObjectMissing):
            return

    def _digested(self, key: str) -> Assembled:
        """Read the object once: the digests that S3 keeps are of its parts."""
        digest, size = hashlib.sha256(), 0
        with S3Reader(self._connection, key, 0, None) as reader:
            while chunk := reader.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return Assembled(size, digest.hexdigest())


class S3PartWriter:
    """Collects one part in a temporary file, for S3 wants to know its digest before its bytes."""

    def __init__(self, connection: S3Connection, upload: PartUpload, number: int) -> None:
        self._connection = connection
        self._upload = upload
        self._number = number
        self._size = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by commit or abort

    def write(self, data: bytes) -> None:
        if self._size + len(data) > self._upload.size_of(self._number):
            raise ValueError(f"Part {self._number} has {self._upload.size_of(self._number)} bytes, not more.")
        self._file.write(data)
        self._size += len(data)

    def commit(self) -> StoredPart:
        if self._size != self._upload.size_of(self._number):
            raise ValueError(
                f"Part {self._number} has {self._upload.size_of(self._number)} bytes, {self._size} arrived."
            )
        self._file.seek(0)
        answer = self._connection.call(
            "upload_part",
            key=self._upload.key,
            UploadId=self._upload.handle,
            PartNumber=self._number,
            Body=self._file,
            ContentLength=self._size,
        )
        self._file.close()
        return StoredPart(self._number, self._size, answer["ETag"])

    def abort(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
