"""The SDK: a thin, typed layer over the HTTP API.

    with Client("http://127.0.0.1:8000") as client:
        model = client.upload_model("resnet20.th", architecture="cifar_resnet20")
        job = client.create_job(model["id"], {"flops": {"max_ratio": 0.4}})
        result = client.wait(job["id"])["result"]
        client.download(job["id"], "out")

Resources are the API's own JSON objects (dicts), so nothing is lost between server versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import httpx

from pennyweight.errors import ApiError, DownloadCorrupt, JobFailed, ServiceUnreachable

DEFAULT_URL = "http://127.0.0.1:8000"
TERMINAL = ("succeeded", "failed", "cancelled")
_CHUNK_BYTES = 1 << 20
# A service that restarts in the middle of a wait is away for seconds; its jobs are not.
_RECONNECT_S = 120.0

JobListener = Callable[[Mapping[str, Any]], None]
ByteListener = Callable[[int, int], None]


class Client:
    """One connection to one service. `base_url` and `api_key` default to PENNYWEIGHT_URL and PENNYWEIGHT_API_KEY."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = (base_url or os.environ.get("PENNYWEIGHT_URL") or DEFAULT_URL).rstrip("/")
        key = api_key or os.environ.get("PENNYWEIGHT_API_KEY")
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # Uploads may wait long for the server's disk, so only connecting and reading are bounded.
            timeout=httpx.Timeout(timeout_s, write=None),
            transport=transport,
            follow_redirects=False,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- models and datasets

    def upload_model(
        self,
        path: str | Path,
        *,
        architecture: str | None = None,
        architecture_args: Mapping[str, Any] | None = None,
        input_shape: Sequence[int] | None = None,
        name: str | None = None,
        on_bytes: ByteListener | None = None,
    ) -> dict[str, Any]:
        """Upload a checkpoint; returns the Model, `inspecting` at first."""
        fields = _fields(
            architecture=architecture, architecture_args=architecture_args, input_shape=input_shape, name=name
        )
        return self._upload("/v1/models", {"file": Path(path)}, fields, on_bytes)

    def upload_dataset(
        self,
        path: str | Path,
        *,
        normalization: Mapping[str, Any] | None = None,
        scale: float | None = None,
        name: str | None = None,
        on_bytes: ByteListener | None = None,
    ) -> dict[str, Any]:
        """Upload a dataset; returns the Dataset, `inspecting` at first."""
        fields = _fields(normalization=normalization, scale=scale, name=name)
        return self._upload("/v1/datasets", {"file": Path(path)}, fields, on_bytes)

    def model(self, model_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/models/{model_id}")

    def dataset(self, dataset_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/datasets/{dataset_id}")

    def wait_inspected(self, resource: Mapping[str, Any], *, timeout_s: float = 120.0) -> dict[str, Any]:
        """Poll a Model or Dataset until it is ready. Raises JobFailed with the reason where it is rejected."""
        kind = {"model": "models", "dataset": "datasets"}[resource["object"]]
        deadline = time.monotonic() + timeout_s
        while True:
            current = self._json("GET", f"/v1/{kind}/{resource['id']}")
            if current["status"] == "rejected":
                raise JobFailed(current["id"], current["error"])
            if current["status"] == "ready":
                return current
            if time.monotonic() > deadline:
                raise ServiceUnreachable(
                    f"{current['id']} is still being inspected after {timeout_s:.0f} s; is a worker running?"
                )
            time.sleep(0.3)

    # --- jobs

    def create_job(self, model_id: str, budget: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Create a job; `options` are the other fields of API.md's job request."""
        return self._json("POST", "/v1/jobs", json={"model": model_id, "budget": budget, **_given(options)})

    def submit(
        self,
        model_path: str | Path,
        spec: Mapping[str, Any],
        *,
        architecture: str | None = None,
        architecture_args: Mapping[str, Any] | None = None,
        input_shape: Sequence[int] | None = None,
        dataset_path: str | Path | None = None,
        normalization: Mapping[str, Any] | None = None,
        scale: float | None = None,
        on_bytes: ByteListener | None = None,
    ) -> dict[str, Any]:
        """Model, dataset and job in one request; `spec` is a job request without its model."""
        files = {"model": Path(model_path)}
        if dataset_path is not None:
            files["dataset"] = Path(dataset_path)
        fields = _fields(
            spec=dict(spec),
            architecture=architecture,
            architecture_args=architecture_args,
            input_shape=input_shape,
            normalization=normalization,
            scale=scale,
        )
        return self._upload("/v1/jobs", files, fields, on_bytes)

    def job(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{job_id}")

    def jobs(self, *, status: str | None = None, limit: int = 20) -> Iterator[dict[str, Any]]:
        """The newest `limit` jobs, page by page."""
        yield from self._list("/v1/jobs", {"status": status} if status else {}, limit)

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """All events of a job, oldest first."""
        yield from self._list(f"/v1/jobs/{job_id}/events", {"order": "asc"}, None)

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"/v1/jobs/{job_id}/cancel")

    def wait(
        self, job_id: str, *, on_change: JobListener | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Poll until the job ends. Survives a restart of the service. Raises JobFailed unless it succeeded.

        Interrupting the wait (Ctrl-C, timeout) leaves the job running.
        """
        etag: str | None = None
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        lost_since: float | None = None
        while True:
            pause_s = 1.0
            try:
                response = self._send("GET", f"/v1/jobs/{job_id}", headers={"If-None-Match": etag} if etag else {})
                lost_since = None
                pause_s = min(_retry_after(response, default=1.0), 5.0)
                if response.status_code != httpx.codes.NOT_MODIFIED:
                    etag = response.headers.get("ETag")
                    job = response.json()
                    if on_change is not None:
                        on_change(job)
                    if job["status"] in TERMINAL:
                        return _succeeded(job)
            except ServiceUnreachable:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > _RECONNECT_S:
                    raise
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{job_id} has not ended within {timeout_s:g} s; it goes on")
            time.sleep(pause_s)

    def artifacts(self, job_id: str) -> list[dict[str, Any]]:
        return list(self._list(f"/v1/jobs/{job_id}/artifacts", {}, None))

    def download(self, job_id: str, folder: str | Path) -> list[Path]:
        """All artifacts of a job, each checked against its sha256 before it gets its name."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        return [self._download(job_id, artifact, target) for artifact in self.artifacts(job_id)]

    # --- what can be asked for

    def methods(self) -> list[dict[str, Any]]:
        return list(self._list("/v1/methods", {}, None))

    def architectures(self, search: str | None = None) -> list[dict[str, Any]]:
        """Every named architecture, or those that have every word of `search` in their name or title."""
        return list(self._list("/v1/architectures", {} if search is None else {"search": search}, None))

    # --- internals

    def _download(self, job_id: str, artifact: Mapping[str, Any], folder: Path) -> Path:
        name = Path(artifact["name"]).name
        partial, digest = folder / f".{name}.part", hashlib.sha256()
        try:
            with self._http.stream("GET", f"/v1/jobs/{job_id}/artifacts/{name}", follow_redirects=True) as response:
                if response.is_error:
                    response.read()
                    raise _api_error(response)
                with partial.open("wb") as file:
                    for chunk in response.iter_bytes(_CHUNK_BYTES):
                        digest.update(chunk)
                        file.write(chunk)
        except httpx.HTTPError as error:
            partial.unlink(missing_ok=True)
            raise self._unreachable(error) from error
        if digest.hexdigest() != artifact["sha256"]:
            partial.unlink()
            raise DownloadCorrupt(
                f"{name} arrived with sha256 {digest.hexdigest()}, not {artifact['sha256']}; download it again."
            )
        return partial.replace(folder / name)

    def _upload(
        self, url: str, files: Mapping[str, Path], fields: Mapping[str, str], on_bytes: ByteListener | None
    ) -> dict[str, Any]:
        with ExitStack() as stack:
            total = sum(path.stat().st_size for path in files.values())
            progress = _ByteCounter(total, on_bytes)
            parts = {
                part: (
                    path.name,
                    _CountedFile(stack.enter_context(path.open("rb")), progress),
                    "application/octet-stream",
                )
                for part, path in files.items()
            }
            return self._json("POST", url, data=dict(fields), files=parts)

    def _list(self, url: str, query: Mapping[str, Any], limit: int | None) -> Iterator[dict[str, Any]]:
        after: str | None = None
        left = limit
        while left is None or left > 0:
            page_size = 100 if left is None else min(left, 100)
            page = self._json("GET", url, params={**query, "limit": page_size, **({"after": after} if after else {})})
            yield from page["data"]
            left = None if left is None else left - len(page["data"])
            if not page["has_more"]:
                return
            after = page["next"]

    def _json(self, method: str, url: str, **options: Any) -> Any:
        return self._send(method, url, **options).json()

    def _send(self, method: str, url: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, url, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _api_error(response)
        return response

    def _unreachable(self, error: Exception) -> ServiceUnreachable:
        return ServiceUnreachable(
            f"No answer from {self.base_url} ({error or type(error).__name__}). Is the service running there? Start one "
            "with `pennyweightd serve`, or name another with --url or PENNYWEIGHT_URL."
        )


class _ByteCounter:
    def __init__(self, total: int, listener: ByteListener | None) -> None:
        self.total, self.sent, self.listener = total, 0, listener

    def add(self, count: int) -> None:
        self.sent += count
        if self.listener is not None:
            self.listener(self.sent, self.total)


class _CountedFile:
    """A file whose reads are counted, with what httpx asks of a file: its length and the right to rewind."""

    def __init__(self, file: IO[bytes], counter: _ByteCounter) -> None:
        self._file, self._counter = file, counter

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._counter.add(len(data))
        return data

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _fields(**values: Any) -> dict[str, str]:
    """Multipart fields: text as it is, everything else as JSON, those left out dropped."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in _given(values).items()}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _retry_after(response: httpx.Response, default: float) -> float:
    try:
        return float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return default


def _api_error(response: httpx.Response) -> ApiError:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {
            "detail": f"{response.request.method} {response.request.url} answered {response.status_code} without a problem document."
        }
    return ApiError(response.status_code, problem)


def _succeeded(job: dict[str, Any]) -> dict[str, Any]:
    if job["status"] == "succeeded":
        return job
    if job["status"] == "cancelled":
        raise JobFailed(job["id"], {"code": "cancelled", "message": f"{job['id']} was cancelled."})
    raise JobFailed(job["id"], job["error"])
