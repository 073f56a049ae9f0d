"""Writing and reading one object in S3, a piece at a time."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from store.errors import PartsGone, StorageUnavailable
from store.objects import CHUNK_BYTES, StoredObject
from store.s3_connection import S3Connection

logger = logging.getLogger(__name__)

WRITER_PART_BYTES = 8 << 20
"""S3 takes parts of 5 MiB at least and 10,000 at most (Swift 1,000): 8 GiB anywhere, 78 GiB at Amazon."""

RESUME_ATTEMPTS = 5
RESUME_PAUSE_S = 0.2


class S3Writer:
    """Writes one object: in one request if it is small, otherwise in parts, of which it holds one."""

    def __init__(self, connection: S3Connection, key: str) -> None:
        self._connection = connection
        self._key = key
        self._digest = hashlib.sha256()
        self._size = 0
        self._held = bytearray()
        self._upload_id: str | None = None
        self._etags: list[str] = []
        self._open = True

    def write(self, data: bytes) -> None:
        if not self._open:
            raise ValueError(f"The writer of {self._key} is closed.")
        self._digest.update(data)
        self._size += len(data)
        view = memoryview(data)
        while view:
            if len(self._held) == WRITER_PART_BYTES:
                self._send_part()
            room = WRITER_PART_BYTES - len(self._held)
            self._held += view[:room]
            view = view[room:]

    def commit(self) -> StoredObject:
        """Make the object visible, replacing one of the same key."""
        if not self._open:
            raise ValueError(f"The writer of {self._key} is closed.")
        if self._upload_id is None:
            self._connection.call("put_object", key=self._key, Body=self._held)
        else:
            self._send_part()  # never empty: a full part is sent when more comes
            self._complete()
        self._open = False
        self._held = bytearray()
        return StoredObject(self._key, self._size, self._digest.hexdigest())

    def abort(self) -> None:
        """Forget everything written; after a commit this does nothing. Parts that stay behind are aborted by their age."""
        if not self._open:
            return
        self._open = False
        self._held = bytearray()
        if self._upload_id is not None:
            try:
                self._connection.call("abort_multipart_upload", key=self._key, UploadId=self._upload_id)
            except PartsGone:
                return
            except StorageUnavailable as error:
                logger.warning("The parts of %s stay until the sweeper finds them: %s", self._key, error)

    def _send_part(self) -> None:
        if self._upload_id is None:
            self._upload_id = self._connection.call("create_multipart_upload", key=self._key)["UploadId"]
        answer = self._connection.call(
            "upload_part",
            key=self._key,
            UploadId=self._upload_id,
            PartNumber=len(self._etags) + 1,
            Body=self._held,
        )
        self._etags.append(answer["ETag"])
        self._held = bytearray()

    def _complete(self) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(self._etags, start=1)]
        try:
            self._connection.call(
                "complete_multipart_upload",
                key=self._key,
                UploadId=self._upload_id,
                MultipartUpload={"Parts": parts},
            )
        except PartsGone:
            # A first answer was lost, and the request was sent again: the object is there.
            if self._connection.call("head_object", key=self._key)["ContentLength"] != self._size:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class S3Reader:
    """Reads a range of one object."""

    def __init__(self, connection: S3Connection, key: str, start: int, end: int | None) -> None:
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"Not a range: {start} to {end}.")
        self._connection = connection
        self._key = key
        self._next = start
        self._etag: str | None = None
        self._body: Any = None
        self.size = self._remaining = self._begin(start, end)

    def _begin(self, start: int, end: int | None) -> int:
        """Open the range; returns how many bytes it has, which may be none."""
        if end == start:
            self._connection.call("head_object", key=self._key)
            return 0
        try:
            answer = self._get(start, end)
        except StorageUnavailable as error:
            if error.code not in ("InvalidRange", "416"):
                raise
            return 0
        self._etag = answer["ETag"]
        return int(answer["ContentLength"])

    def _get(self, start: int, end: int | None, **conditions: str) -> Any:
        wanted = {} if start == 0 and end is None else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        answer = self._connection.call("get_object", key=self._key, **wanted, **conditions)
        self._body = answer["Body"]
        return answer

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; all that remain for a negative size; `b""` at the end."""
        if size < 0:
            return b"".join(self)
        wanted = min(size, self._remaining)
        if wanted == 0:
            return b""
        for attempt in range(RESUME_ATTEMPTS):
            try:
                data = self._connection.explaining(lambda: self._body.read(wanted), key=self._key)
                if not data:
                    raise StorageUnavailable(f"The object store ended {self._key} {self._remaining} bytes too early.")
                break
            except StorageUnavailable as error:
                if attempt == RESUME_ATTEMPTS - 1:
                    raise
                logger.warning("Reading %s again from byte %d: %s", self._key, self._next, error)
                time.sleep(RESUME_PAUSE_S * 2**attempt)
                self.close()
                self._get(self._next, self._next + self._remaining, IfMatch=self._etag)
        self._next += len(data)
        self._remaining -= len(data)
        return data

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read(CHUNK_BYTES):
            yield chunk

    def close(self) -> None:
        if self._body is not None:
            self._body.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
