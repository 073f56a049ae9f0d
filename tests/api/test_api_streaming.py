"""Uploads against a server in a process of its own: memory stays flat, broken connections leave nothing."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.transfer import Server, generated_file, serving, upload, upload_in_parts

MIB = 1 << 20
SIZE_MIB = 256


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "data") as server:
        yield server


def test_memory_is_flat_while_256_mib_are_uploaded_and_the_digest_is_right(server):
    upload(server.url, 8 * MIB)
    before = server.peak_rss_bytes()
    model = upload(server.url, SIZE_MIB * MIB)
    assert server.peak_rss_bytes() - before < 16 * MIB
    digest = hashlib.sha256()
    for _ in range(SIZE_MIB):
        digest.update(bytes(range(256)) * 4096)
    assert (model["size_bytes"], model["sha256"]) == (SIZE_MIB * MIB, digest.hexdigest())


def test_memory_is_flat_while_256_mib_are_downloaded(server):
    model = upload(server.url, SIZE_MIB * MIB)
    before = server.peak_rss_bytes()
    received = 0
    with httpx.stream("GET", f"{server.url}/v1/models/{model['id']}/content") as answer:
        for chunk in answer.iter_raw(MIB):
            received += len(chunk)
    assert received == SIZE_MIB * MIB
    assert server.peak_rss_bytes() - before < 24 * MIB


def test_memory_is_flat_while_a_file_comes_in_parts_and_goes_in_a_range(server, tmp_path):
    path = generated_file(tmp_path / "generated.pt", 128 * MIB)
    upload_in_parts(server.url, generated_file(tmp_path / "first.pt", 32 * MIB))
    before = server.peak_rss_bytes()
    model = upload_in_parts(server.url, path)
    assert model["size_bytes"] == 128 * MIB
    headers = {"Range": f"bytes={MIB}-"}
    with httpx.stream("GET", f"{server.url}/v1/models/{model['id']}/content", headers=headers) as answer:
        assert sum(len(chunk) for chunk in answer.iter_raw(MIB)) == 127 * MIB
    assert server.peak_rss_bytes() - before < 24 * MIB


def test_broken_connection_leaves_nothing_behind(server):
    host, port = server.url.removeprefix("http://").split(":")
    head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="net.pt"\r\n\r\n'
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
            b"Content-Length: 100000000\r\n\r\n" + head + bytes(5 * MIB)
        )
        until(lambda: any(path.stat().st_size >= 4 * MIB for path in server.stored_files()))
    until(lambda: server.stored_files() == [])
    assert httpx.get(f"{server.url}/v1/models").json()["data"] == []


def test_client_that_downloads_half_does_not_keep_the_file_open(server):
    model = upload(server.url, 32 * MIB)
    with httpx.stream("GET", f"{server.url}/v1/models/{model['id']}/content") as answer:
        # Held, because a collected iterator closes the connection.
        chunks = answer.iter_raw(MIB)
        next(chunks)
        assert server.open_files() == 1
    until(lambda: server.open_files() == 0)


def until(condition, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
