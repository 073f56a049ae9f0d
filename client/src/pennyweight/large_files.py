"""Large files both ways, so that what is interrupted goes on where it was.

Up: a file is announced with its sha256 and sent in parts, some at a time, to the URLs that the service names: its own, or
presigned ones of its object store. An upload of the same file that is still open, from an earlier run or another machine,
is found by the digest and continued.

Down: what has arrived stays in a hidden file beside the target and is continued with a range request; the digest decides.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit

import httpx

from pennyweight.errors import ApiError, DownloadCorrupt, ServiceUnreachable, api_error, is_passing
from pennyweight.transfer import idempotency_key

PARTS_FROM_BYTES = 32 << 20
"""Smaller files go in one request: repeating it costs less than the extra ones."""

PARALLEL_PARTS = 4
PARALLEL_PARTS_TO_US = 2
"""Through the service itself each part costs it processor time, and more at once cost it more than they gain."""
ATTEMPTS = 6
_CHUNK_BYTES = 1 << 20
_PAUSE_S = 0.5
_COMPLETION_TIMEOUT_S = 900.0
"""The service reads the whole file once before it answers."""


class PartsUpload:
    """One file on its way up. `announcement` is the body of `POST /v1/uploads` without filename, size and digest."""

    def __init__(
        self, http: httpx.Client, path: Path, announcement: Mapping[str, Any], progress: Callable[[int], None]
    ) -> None:
        self._http = http
        self._path = path
        self._announcement = announcement
        self._progress = progress

    def run(self) -> dict[str, Any]:
        """Send what is missing; returns the Model or Dataset. Raises ApiError, ServiceUnreachable."""
        upload = self._open()
        for part in upload["parts"]:
            if part["etag"] is not None:
                self._progress(part["size"])
        failures, trouble = 0, "no part arrived"
        while missing := [part for part in upload["parts"] if part["etag"] is None]:
            before = len(missing)
            trouble = self._send_all(upload, missing) or trouble
            upload = self._retried("GET", f"/v1/uploads/{upload['id']}")
            failures = failures + 1 if sum(part["etag"] is None for part in upload["parts"]) == before else 0
            if failures == ATTEMPTS:
                raise ServiceUnreachable(
                    f"{self._path.name} could not be sent ({trouble}). Run this again: it goes on where it was."
                )
            time.sleep(_PAUSE_S * failures)
        parts = [{"number": part["number"], "etag": part["etag"]} for part in upload["parts"]]
        return self._retried(
            "POST",
            f"/v1/uploads/{upload['id']}/complete",
            json={"parts": parts},
            timeout=httpx.Timeout(_COMPLETION_TIMEOUT_S),
        )

    def _open(self) -> dict[str, Any]:
        """The upload of this very file that is still open, or a new one."""
        sha256, size = digest_of(self._path), self._path.stat().st_size
        wanted = {key: value for key, value in self._announcement.items() if key != "purpose"}
        for found in self._retried("GET", "/v1/uploads", params={"sha256": sha256})["data"]:
            if (found["purpose"], found["size"]) == (self._announcement["purpose"], size) and found[
                "request"
            ] == wanted:
                return self._retried("GET", f"/v1/uploads/{found['id']}")
        body = {**self._announcement, "filename": self._path.name, "size": size, "sha256": sha256}
        return self._retried("POST", "/v1/uploads", json=body, headers=idempotency_key())

    def _send_all(self, upload: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> str | None:
        """PUT these parts, some at a time; returns the first thing that went wrong."""
        at_once = PARALLEL_PARTS_TO_US if _is_ours(upload, parts[0]) else PARALLEL_PARTS
        with ThreadPoolExecutor(at_once) as pool, httpx.Client(timeout=self._http.timeout) as elsewhere:
            outcomes = list(pool.map(lambda part: self._send(upload, part, elsewhere), parts))
        return next((outcome for outcome in outcomes if outcome is not None), None)

    def _send(self, upload: Mapping[str, Any], part: Mapping[str, Any], elsewhere: httpx.Client) -> str | None:
        """PUT one part; returns what went wrong, if it may go right another time. Raises ApiError if it may not."""
        # The key of the service is for the service; what is presigned needs none and refuses a second one.
        ours = _is_ours(upload, part)
        client, url = (self._http, _own_path(upload, part)) if ours else (elsewhere, part["url"])
        sent = 0

        def body() -> Iterator[bytes]:
            nonlocal sent
            for piece in _pieces(self._path, (part["number"] - 1) * upload["part_size"], part["size"]):
                yield piece
                sent += len(piece)
                self._progress(len(piece))

        try:
            answer = client.put(url, content=body(), headers={"Content-Length": str(part["size"])})
        except httpx.HTTPError as error:
            self._progress(-sent)
            return str(error) or type(error).__name__
        if answer.is_success:
            return None
        self._progress(-sent)
        if ours and answer.status_code < 500 and answer.status_code != httpx.codes.CONFLICT:
            raise api_error(answer)
        return f"HTTP {answer.status_code} from {httpx.URL(part['url']).host}"

    def _retried(self, method: str, url: str, **options: Any) -> Any:
        """A request that may be sent twice."""
        for attempt in range(ATTEMPTS):
            try:
                return self._once(method, url, **options)
            except (ServiceUnreachable, ApiError) as error:
                if not is_passing(error) or attempt == ATTEMPTS - 1:
                    raise
                time.sleep(_PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, method: str, url: str, **options: Any) -> Any:
        try:
            answer = self._http.request(method, url, **options)
        except httpx.HTTPError as error:
            raise ServiceUnreachable(
                f"No answer from {self._http.base_url} ({error or type(error).__name__}) while {self._path.name} was "
                "sent. Run this again: it goes on where it was."
            ) from error
        if answer.is_error:
            raise api_error(answer)
        return answer.json()


def _own_path(upload: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    return f"/v1/uploads/{upload['id']}/parts/{part['number']}"


def _is_ours(upload: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Whether the part goes to the service, and not past it to an object store."""
    return urlsplit(part["url"]).path.endswith(_own_path(upload, part))


def fetch(http: httpx.Client, url: str, folder: Path, *, name: str, size: int, sha256: str) -> Path:
    """Download a file of this size and digest into the folder, going on with what an earlier call left there.

    Raises ApiError, ServiceUnreachable, DownloadCorrupt.
    """
    with _Partial(folder / f".{name}.{sha256[:16]}.part", size) as partial:
        failures = 0
        while (have := partial.size) < size:
            try:
                _continue(http, url, partial)
            except (httpx.HTTPError, ServiceUnreachable) as error:
                failures = 0 if partial.size > have else failures + 1
                if failures == ATTEMPTS:
                    raise ServiceUnreachable(
                        f"{name} stopped at {have} of {size} bytes ({error or type(error).__name__}). Run this "
                        "again: it goes on there."
                    ) from error
                time.sleep(_PAUSE_S * failures)
                continue
            if partial.size <= have:
                break
        found = partial.sha256
        if found != sha256:
            partial.begin_anew()
            raise DownloadCorrupt(f"{name} arrived with sha256 {found}, not {sha256}; download it again.")
        return partial.moved_to(folder / name)


class _Partial:
    """A file that is on its way, and the digest of what is there; what is longer than `longest` is begun anew.

    Whoever else fetches it into the same folder writes the same bytes to the same places of the same file, and the first
    to have it whole moves it. So it is opened once, never cut short, and not taken for whole unless it is still that file.
    """

    def __init__(self, path: Path, longest: int) -> None:
        self.path = path
        self.size, self._digest = 0, hashlib.sha256()
        self._file: BinaryIO | None = None
        try:
            self._file = path.open("r+b")
        except FileNotFoundError:
            return
        if os.fstat(self._file.fileno()).st_size > longest:
            self.begin_anew()
            return
        self._digest = hashlib.file_digest(self._file, "sha256")
        self.size = self._file.tell()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def begin_anew(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
        self.size, self._digest = 0, hashlib.sha256()

    def append(self, pieces: Iterator[bytes]) -> None:
        file = self._opened()
        for piece in pieces:
            file.write(piece)
            self._digest.update(piece)
            self.size += len(piece)

    def moved_to(self, target: Path) -> Path:
        """Raises DownloadCorrupt where the file was taken away, and not by who has fetched it as well."""
        whole = os.fstat(self._opened().fileno())
        self.close()
        with suppress(FileNotFoundError):
            if os.path.samestat(whole, self.path.stat()):
                return self.path.replace(target)
        with suppress(FileNotFoundError):
            if digest_of(target) == self.sha256:
                return target
        raise DownloadCorrupt(f"{target.name} was taken away while it arrived; download it again.")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._file = os.fdopen(os.open(self.path, flags, 0o666), "r+b")
        return self._file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fetch_bundle(http: httpx.Client, url: str, target: Path, layout: str) -> Path:
    """Download a zip that is made while it is sent, so that it cannot be continued. Raises ApiError, httpx.HTTPError."""
    partial = target.with_name(f".{target.name}.part")
    try:
        with http.stream("GET", url, params={"layout": layout}) as answer:
            if answer.is_error:
                answer.read()
                raise api_error(answer)
            with partial.open("wb") as file:
                for piece in answer.iter_bytes(_CHUNK_BYTES):
                    file.write(piece)
        return partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _continue(http: httpx.Client, url: str, partial: _Partial) -> None:
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={partial.size}-"} if partial.size else {})}
    with http.stream("GET", url, headers=headers, follow_redirects=True) as answer:
        if answer.status_code >= 500:
            raise ServiceUnreachable(f"HTTP {answer.status_code}")
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and partial.size:
            partial.begin_anew()
            return _continue(http, url, partial)
        if answer.is_error:
            answer.read()
            raise api_error(answer)
        if answer.status_code != httpx.codes.PARTIAL_CONTENT:
            partial.begin_anew()
        partial.append(answer.iter_raw())  # in pieces as they come: larger ones would be copied together first


def digest_of(path: Path) -> str:
    """The sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pieces(path: Path, start: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while size > 0 and (piece := file.read(min(_CHUNK_BYTES, size))):
            size -= len(piece)
            yield piece
