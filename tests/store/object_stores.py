"""The object stores that tests run on: local files, S3 as moto plays it, and a real S3 server where one is named.

PENNYWEIGHT_TEST_S3_URL names the real one (an `s3://bucket?endpoint=…` URL, credentials in AWS_*); the full suite sets it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from moto.server import ThreadedMotoServer

from store.objects import LocalObjects, ObjectStore, object_store
from store.s3 import S3Objects

REAL_S3_URL = os.environ.get("PENNYWEIGHT_TEST_S3_URL")
S3_KINDS = ("moto", "s3") if REAL_S3_URL else ("moto",)
KINDS = ("local", *S3_KINDS)
FAITHFUL_KINDS = tuple(kind for kind in KINDS if kind != "moto")
"""moto gives every multipart upload the same date, and answers 500 for a part of one that is gone."""

BUCKET = "pennyweight"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "testing"}


@contextmanager
def s3_environment() -> Iterator[None]:
    """Credentials, unless the environment has its own; no profile or machine role of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, os.environ.get(name, value))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield


@contextmanager
def moto_endpoint() -> Iterator[str]:
    """A moto server with one empty bucket. Needs `s3_environment`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=BUCKET)
        yield endpoint
    finally:
        server.stop()


def s3_url(kind: str, endpoint: str | None) -> str:
    """The storage URL of an empty folder of a bucket."""
    base = REAL_S3_URL if kind == "s3" else f"s3://{BUCKET}?endpoint={endpoint}"
    assert base is not None
    bucket, _, options = base.partition("?")
    return f"{bucket}/test-{secrets.token_hex(6)}?{options}"


@contextmanager
def opened(kind: str, folder: Path, endpoint: str | None, *, public: bool = False) -> Iterator[ObjectStore]:
    """An empty store of this kind; what is left in it is removed at the end. `public`: clients may go there directly."""
    if kind == "local":
        yield LocalObjects(folder)
        return
    url = s3_url(kind, endpoint)
    store = object_store(url, parse_qs(urlsplit(url).query)["endpoint"][0] if public else None)
    yield store
    store.parts.abort_older_than(-60)
    for key in stored(store):
        store.delete(key)


def stored(store: ObjectStore) -> list[str]:
    """Everything that takes up space: the keys of objects, and what is unfinished."""
    if isinstance(store, LocalObjects):
        return sorted(str(path.relative_to(store._root)) for path in store._root.rglob("*") if path.is_file())
    assert isinstance(store, S3Objects)
    uploads = store._connection.call("list_multipart_uploads", Prefix=store._connection.name_of("")).get("Uploads", ())
    return sorted([*store.keys(older_than_s=-60), *(f".parts/{upload['Key']}" for upload in uploads)])
