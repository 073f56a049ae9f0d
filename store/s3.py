"""Objects in an S3 bucket, behind the same protocol as local files.

An object is put whole, or in parts that become visible together, so it too is completely there or not at all. Memory
stays flat: a writer holds one part, a reader one piece. Objects are never changed in place, so a reader whose connection
breaks goes on where it was, provided that the entity tag is still the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from store.errors import ObjectMissing
from store.objects import check_key, copy_checked
from store.s3_connection import S3Address, S3Connection
from store.s3_parts import S3Parts
from store.s3_streams import S3Reader, S3Writer


class S3Objects:
    """Objects of one bucket, under one prefix of it."""

    def __init__(self, connection: S3Connection) -> None:
        self._connection = connection
        self.parts = S3Parts(connection)

    @classmethod
    def from_url(cls, url: str, public_url: str | None = None) -> S3Objects:
        """The store of an `s3://bucket/prefix?endpoint=…` URL; connects on first use. Raises ValueError."""
        return cls(S3Connection(S3Address.parse(url), public_url))

    def open_writer(self, key: str) -> S3Writer:
        check_key(key)
        return S3Writer(self._connection, key)

    def open_reader(self, key: str, start: int = 0, end: int | None = None) -> S3Reader:
        """Bytes `start` (inclusive) to `end` (exclusive; None means to the end). Raises ObjectMissing, ValueError."""
        check_key(key)
        return S3Reader(self._connection, key, start, end)

    def delete(self, key: str) -> None:
        """Remove one object; a missing one is no error."""
        check_key(key)
        with suppress(ObjectMissing):
            self._connection.call("delete_object", key=key)

    def delete_prefix(self, prefix: str) -> None:
        """Remove the object with this key and every object in the folder of this name.

        One by one: deleting many in one request wants a checksum that not every store and version agree about.
        """
        check_key(prefix)
        for key, _ in self._entries(f"{prefix}/"):
            self.delete(key)
        self.delete(prefix)

    def fetch(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Copy an object to a new file at `path`. Raises ObjectMissing, and StorageUnavailable where the bytes are not
        those of `sha256`."""
        with self.open_reader(key) as reader:
            copy_checked(key, reader, path, sha256)

    def keys(self, *, older_than_s: float) -> Iterator[str]:
        """Keys of the objects that are older than this, in no order. Amazon counts from the beginning of their upload."""
        latest = datetime.now(UTC) - timedelta(seconds=older_than_s)
        return (key for key, modified in self._entries("") if modified < latest)

    def check(self) -> None:
        """Raises StorageUnavailable unless the bucket is there and takes our credentials."""
        self._connection.call("head_bucket")

    def download_url(self, key: str, *, disposition: str, media_type: str) -> str | None:
        check_key(key)
        return self._connection.presigned(
            "get_object",
            key=key,
            ResponseContentDisposition=disposition,
            ResponseContentType=media_type,
        )

    def _entries(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """Every key that starts so, with its age; a page of at most 1,000 at a time."""
        whole, cut = self._connection.name_of(prefix), len(self._connection.name_of(""))
        more: dict[str, Any] = {}
        while True:
            page = self._connection.call("list_objects_v2", Prefix=whole, **more)
            yield from ((entry["Key"][cut:], entry["LastModified"]) for entry in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}
