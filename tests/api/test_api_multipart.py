"""The multipart stream gives the same parts however the network cuts it, and whatever the files contain."""

from __future__ import annotations

from itertools import pairwise

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from api.multipart import PartEnd, PartStart, parts_of
from api.problems import Problem

BOUNDARY = "edge"
# Contents that look like the framing are the ones that a parser gets wrong.
PIECES = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"--", b"--edge", b"\r\n--edge", b"\r\n--edg", b"--edge--", b"\0\xff", b"x" * 40]
)
CONTENT = st.lists(PIECES, max_size=12).map(b"".join).filter(lambda data: b"\r\n--edge" not in b"\r\n" + data)
PARTS = st.lists(st.tuples(st.text("abcé_1", min_size=1, max_size=8), CONTENT), max_size=5)


def encoded(parts: list[tuple[str, bytes]]) -> bytes:
    head = '--edge\r\nContent-Disposition: form-data; name="{}"; filename="f"\r\n\r\n'
    return b"".join(head.format(name).encode() + data + b"\r\n" for name, data in parts) + b"--edge--\r\n"


def received(body: bytes, cuts: list[int]) -> list[tuple[str, bytes]]:
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    chunks = [body[start:end] for start, end in pairwise(edges)]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    waiting = iter(messages)

    async def receive():
        return next(waiting)

    async def collect() -> list[tuple[str, bytes]]:
        scope = {"type": "http", "headers": [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]}
        found: list[tuple[str, bytes]] = []
        name, data = "", b""
        async for event in parts_of(Request(scope, receive)):
            match event:
                case PartStart():
                    assert event.filename == "f"
                    name, data = event.name, b""
                case PartEnd():
                    found.append((name, data))
                case piece:
                    data += piece
        return found

    return anyio.run(collect)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(PARTS.filter(bool), st.lists(st.integers(0, 600), max_size=12))
def test_parts_do_not_depend_on_where_the_network_cuts(parts, cuts):
    assert received(encoded(parts), cuts) == parts


@settings(max_examples=150, deadline=None, derandomize=True)
@given(PARTS.filter(bool), st.data())
def test_body_that_is_cut_short_is_never_taken_for_a_whole_one(parts, data):
    body = encoded(parts)
    length = data.draw(st.integers(0, len(body) - len("--\r\n") - 1))
    try:
        received(body[:length], [])
    except Problem as problem:
        assert problem.code == "malformed_multipart"
    else:
        raise AssertionError("a truncated body was accepted")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_noise_is_a_problem_and_never_a_crash(body, cuts):
    try:
        received(b"--edge" + body, cuts)
    except Problem as problem:
        assert problem.code == "malformed_multipart"
