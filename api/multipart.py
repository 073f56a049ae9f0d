"""A multipart body as a stream of events, so that a file of any size passes through without being held.

async for event in parts_of(request):
    match event:
        case PartStart(name, filename): ...
        case bytes(): ...      # the next piece of that part
        case PartEnd(): ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from api.problems import Problem

_IDENTITY_ENCODINGS = frozenset({"", "binary", "8bit", "7bit"})


@dataclass(frozen=True)
class PartStart:
    """`filename` is what the client called the file, None for a plain field."""

    name: str
    filename: str | None


@dataclass(frozen=True)
class PartEnd:
    pass


Event = PartStart | bytes | PartEnd


async def parts_of(request: Request) -> AsyncIterator[Event]:
    """The parts of a `multipart/form-data` body. Raises Problem `malformed_multipart`, and ClientDisconnect."""
    collected = _Collector()
    parser = MultipartParser(_boundary(request), collected.callbacks())
    async for chunk in request.stream():
        try:
            parser.write(chunk)
        except FormParserError as error:
            raise Problem("malformed_multipart", f"The multipart body cannot be read: {error}.") from error
        for event in collected.take():
            yield event
        if collected.ended:
            return
    raise Problem("malformed_multipart", "The multipart body ends before its closing boundary: it was cut short.")


def _boundary(request: Request) -> bytes:
    _, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise Problem(
            "malformed_multipart", "Content-Type: multipart/form-data needs a boundary of 1 to 70 characters."
        )
    return boundary


class _Collector:
    """Turns the parser's callbacks into events."""

    def __init__(self) -> None:
        self.ended = False
        self._events: list[Event] = []
        self._headers: dict[bytes, bytes] = {}
        self._name = b""
        self._value = b""

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._headers.clear,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": lambda data, start, end: self._events.append(data[start:end]),
            "on_part_end": lambda: self._events.append(PartEnd()),
            "on_end": self._on_end,
        }

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _on_headers_finished(self) -> None:
        disposition, options = parse_options_header(_text(self._headers.get(b"content-disposition", b"")))
        if disposition != b"form-data" or not options.get(b"name"):
            raise Problem(
                "malformed_multipart", 'Every part needs a header `Content-Disposition: form-data; name="…"`.'
            )
        encoding = _text(self._headers.get(b"content-transfer-encoding", b"")).strip().lower()
        if encoding not in _IDENTITY_ENCODINGS:
            raise Problem(
                "malformed_multipart", f"Send parts as they are, not with the transfer encoding {encoding!r}."
            )
        filename = options.get(b"filename")
        self._events.append(PartStart(_utf8(options[b"name"]), None if filename is None else _utf8(filename)))

    def _on_end(self) -> None:
        self.ended = True


def _text(header: bytes) -> str:
    return header.decode("latin-1")


def _utf8(option: bytes) -> str:
    """Names in part headers are UTF-8 in practice (and by the HTML standard)."""
    return option.decode("utf-8", errors="replace")
