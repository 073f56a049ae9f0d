"""The SDK: a thin, typed layer over the HTTP API.

    with Client("http://127.0.0.1:8000") as client:
        model = client.upload_model("resnet20.th", architecture="cifar_resnet20")
        job = client.create_job(model["id"], {"flops": {"max_ratio": 0.4}})
        result = client.wait(job["id"])["result"]
        client.download(job["id"], "out")

Resources are the API's own JSON objects (dicts), so nothing is lost between server versions.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from pennyweight.addresses import DEFAULT_URL, check_address, checked_id
from pennyweight.errors import ApiError, JobFailed, ServiceUnreachable, api_error, is_passing
from pennyweight.large_files import PARTS_FROM_BYTES, PartsUpload, fetch, fetch_bundle
from pennyweight.plans import Plan, made
from pennyweight.transfer import ByteCounter, ByteListener, CountedFile, fields_of, idempotency_key
from pennyweight.waiting import TERMINAL, Deadline, patiently, retry_after, succeeded

CREATE_ATTEMPTS = 5
_PAUSE_S = 0.5
_LONGEST_POLL_S = 5.0
_PLAN_TIMEOUT = httpx.Timeout(60.0)

JobListener = Callable[[Mapping[str, Any]], None]


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
        check_address(self.base_url)
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
        input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        name: str | None = None,
        on_bytes: ByteListener | None = None,
    ) -> dict[str, Any]:
        """Upload a checkpoint; returns the Model, `inspecting` at first. A large one that was interrupted goes on."""
        values = _given(
            {
                "architecture": architecture,
                "architecture_args": architecture_args,
                "input_shape": input_shape,
                "name": name,
            }
        )
        return self._upload_one("model", Path(path), values, _counter(on_bytes, Path(path)))

    def upload_dataset(
        self,
        path: str | Path,
        *,
        normalization: Mapping[str, Any] | None = None,
        scale: float | None = None,
        convert: Mapping[str, Any] | None = None,
        name: str | None = None,
        on_bytes: ByteListener | None = None,
    ) -> dict[str, Any]:
        """Upload a dataset; returns the Dataset, `inspecting` at first. A large one that was interrupted goes on.

        convert: what to do to encoded images, `{"size": [height, width], "color": "grey" or "rgb"}`, either or both.
        """
        values = _given({"normalization": normalization, "scale": scale, "convert": convert, "name": name})
        return self._upload_one("dataset", Path(path), values, _counter(on_bytes, Path(path)))

    def model(self, model_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/models/{checked_id(model_id)}")

    def dataset(self, dataset_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/datasets/{checked_id(dataset_id)}")

    def wait_inspected(self, resource: Mapping[str, Any], *, timeout_s: float = 120.0) -> dict[str, Any]:
        """Poll a Model or Dataset until it is ready. Raises JobFailed with the reason where it is rejected."""
        kind = {"model": "models", "dataset": "datasets"}[resource["object"]]
        deadline = Deadline(timeout_s)
        while True:
            current = self._look(f"/v1/{kind}/{checked_id(resource['id'])}", deadline).json()
            if current["status"] == "rejected":
                raise JobFailed(current["id"], current["error"], current)
            if current["status"] == "ready":
                return current
            if deadline.passed:
                raise ServiceUnreachable(
                    f"{current['id']} is still being inspected after {timeout_s:.0f} s; is a worker running?"
                )
            deadline.sleep(0.3)

    # --- plans

    def create_plan(
        self, model_id: str, budget: Mapping[str, Any], *, timeout_s: float = 300.0, **options: Any
    ) -> Plan:
        """What a job with these arguments would do (see `create_job`), layer by layer, without doing it.

        An infeasible budget is an answer too: `plan["feasible"]` is False. Raises JobFailed where there is no answer.
        """
        body = {"model": model_id, "budget": budget, **_given(options)}
        deadline = Deadline(timeout_s)
        # The service keeps us waiting for up to 30 s, which is no sign that it is gone.
        response = self._create("/v1/plans", json=body, timeout=_PLAN_TIMEOUT)
        while (plan := Plan(response.json()))["status"] == "planning":
            if deadline.passed:
                raise TimeoutError(f"{plan['id']} has not been made within {timeout_s:g} s; is a worker running?")
            deadline.sleep(min(retry_after(response, 1.0), _LONGEST_POLL_S))
            response = self._look(f"/v1/plans/{checked_id(plan['id'])}", deadline)
        return made(plan)

    def plan(self, plan_id: str) -> Plan:
        """A plan as it is now. Raises JobFailed where it could not be made."""
        return made(Plan(self._json("GET", f"/v1/plans/{checked_id(plan_id)}")))

    # --- jobs

    def create_job(self, model_id: str, budget: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Create a job; `options` are the other fields of API.md's job request."""
        return self._create("/v1/jobs", json={"model": model_id, "budget": budget, **_given(options)}).json()

    def submit(
        self,
        model_path: str | Path,
        spec: Mapping[str, Any],
        *,
        architecture: str | None = None,
        architecture_args: Mapping[str, Any] | None = None,
        input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
        dataset_path: str | Path | None = None,
        normalization: Mapping[str, Any] | None = None,
        scale: float | None = None,
        convert: Mapping[str, Any] | None = None,
        on_bytes: ByteListener | None = None,
    ) -> dict[str, Any]:
        """Model, dataset and job in one request, or one after another if the files are large; `spec` is a job request
        without its model."""
        files = {"model": Path(model_path), **({} if dataset_path is None else {"dataset": Path(dataset_path)})}
        about_model = _given(
            {"architecture": architecture, "architecture_args": architecture_args, "input_shape": input_shape}
        )
        about_dataset = _given({"normalization": normalization, "scale": scale, "convert": convert})
        counter = _counter(on_bytes, *files.values())
        if counter.total < PARTS_FROM_BYTES:
            values = {"spec": dict(spec), **about_model, **about_dataset}
            return self._upload_form("/v1/jobs", files, values, counter)
        job = {**spec, "model": self._upload_one("model", files["model"], about_model, counter)["id"]}
        if "dataset" in files:
            job["dataset"] = self._upload_one("dataset", files["dataset"], about_dataset, counter)["id"]
        return self._create("/v1/jobs", json=job).json()

    def job(self, job_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{checked_id(job_id)}")

    def jobs(self, *, status: str | None = None, limit: int = 20) -> Iterator[dict[str, Any]]:
        """The newest `limit` jobs, page by page."""
        yield from self._list("/v1/jobs", {"status": status} if status else {}, limit)

    def events(self, job_id: str, *, after: int = 0) -> Iterator[dict[str, Any]]:
        """All events of a job whose `seq` is greater than `after`, oldest first."""
        yield from self._list(f"/v1/jobs/{checked_id(job_id)}/events", {"order": "asc"}, None, str(after))

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._json("POST", f"/v1/jobs/{checked_id(job_id)}/cancel")

    def wait(
        self, job_id: str, *, on_change: JobListener | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Poll until the job ends, through overload, resets and restarts of the service. Raises JobFailed unless it succeeded.

        Interrupting the wait (Ctrl-C, timeout) leaves the job running.
        """
        etag: str | None = None
        deadline = Deadline(timeout_s)
        while True:
            headers = {"If-None-Match": etag} if etag else {}
            response = self._look(f"/v1/jobs/{checked_id(job_id)}", deadline, headers=headers)
            if response.status_code != httpx.codes.NOT_MODIFIED:
                etag = response.headers.get("ETag")
                job = response.json()
                if on_change is not None:
                    on_change(job)
                if job["status"] in TERMINAL:
                    return succeeded(job)
            if deadline.passed:
                raise TimeoutError(f"{job_id} has not ended within {timeout_s:g} s; it goes on")
            deadline.sleep(min(retry_after(response, 1.0), _LONGEST_POLL_S))

    def artifacts(self, job_id: str) -> list[dict[str, Any]]:
        return list(self._list(f"/v1/jobs/{checked_id(job_id)}/artifacts", {}, None))

    def download(self, job_id: str, folder: str | Path) -> list[Path]:
        """All artifacts of a job, each checked against its sha256 before it gets its name.

        What an interrupted call left in the folder is continued.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        return [
            fetch(
                self._http,
                f"/v1/jobs/{checked_id(job_id)}/artifacts/{quote(artifact['name'])}",
                target,
                name=Path(artifact["name"]).name,
                size=artifact["size"],
                sha256=artifact["sha256"],
            )
            for artifact in self.artifacts(job_id)
        ]

    def bundle(self, job_id: str, path: str | Path, *, layout: str = "flat") -> Path:
        """All artifacts of a job as one zip file at `path`; the layout `triton` is a model repository for Triton."""
        try:
            return fetch_bundle(self._http, f"/v1/jobs/{checked_id(job_id)}/bundle", Path(path), layout)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    # --- what can be asked for

    def methods(self) -> list[dict[str, Any]]:
        return list(self._list("/v1/methods", {}, None))

    def architectures(self, search: str | None = None) -> list[dict[str, Any]]:
        """Every named architecture, or those that have every word of `search` in their name or title."""
        return list(self._list("/v1/architectures", {} if search is None else {"search": search}, None))

    # --- internals

    def _upload_one(self, purpose: str, path: Path, values: Mapping[str, Any], counter: ByteCounter) -> dict[str, Any]:
        if path.stat().st_size < PARTS_FROM_BYTES:
            return self._upload_form(f"/v1/{purpose}s", {"file": path}, values, counter)
        return PartsUpload(self._http, path, {"purpose": purpose, **values}, counter.add).run()

    def _upload_form(
        self, url: str, files: Mapping[str, Path], values: Mapping[str, Any], counter: ByteCounter
    ) -> dict[str, Any]:
        with ExitStack() as stack:
            parts = {
                part: (
                    path.name,
                    CountedFile(stack.enter_context(path.open("rb")), counter),
                    "application/octet-stream",
                )
                for part, path in files.items()
            }
            return self._create(url, data=fields_of(**values), files=parts).json()

    def _list(
        self, url: str, query: Mapping[str, Any], limit: int | None, after: str | None = None
    ) -> Iterator[dict[str, Any]]:
        left = limit
        while left is None or left > 0:
            page_size = 100 if left is None else min(left, 100)
            page = self._json("GET", url, params={**query, "limit": page_size, **({"after": after} if after else {})})
            yield from page["data"]
            left = None if left is None else left - len(page["data"])
            if not page["has_more"]:
                return
            after = page["next"]

    def _create(self, url: str, **options: Any) -> httpx.Response:
        """POST under a key of its own, so that sending it again after a broken connection creates nothing twice."""
        headers = idempotency_key()
        for attempt in itertools.count(1):
            try:
                return self._send("POST", url, headers=headers, **options)
            except (ServiceUnreachable, ApiError) as error:
                never_reached = attempt == 1 and isinstance(error.__cause__, httpx.ConnectError)
                if attempt == CREATE_ATTEMPTS or never_reached or not is_passing(error):
                    raise
                asked_s = error.retry_after_s if isinstance(error, ApiError) else None
            time.sleep(max(_PAUSE_S * 2 ** (attempt - 1), min(asked_s or 0.0, _LONGEST_POLL_S)))

    def _look(self, url: str, deadline: Deadline, **options: Any) -> httpx.Response:
        """GET, through everything that passes."""
        return patiently(lambda: self._send("GET", url, **options), deadline)

    def _json(self, method: str, url: str, **options: Any) -> Any:
        return self._send(method, url, **options).json()

    def _send(self, method: str, url: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, url, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise api_error(response)
        return response

    def _unreachable(self, error: Exception) -> ServiceUnreachable:
        return ServiceUnreachable(
            f"No answer from {self.base_url} ({error or type(error).__name__}). Is the service running there? Start one "
            "with `pennyweightd serve`, or name another with --url or PENNYWEIGHT_URL."
        )


def _counter(listener: ByteListener | None, *files: Path) -> ByteCounter:
    return ByteCounter(sum(path.stat().st_size for path in files), listener)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
