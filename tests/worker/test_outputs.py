"""A runner's output folder is believed only as far as it can be checked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from store.claims import Claim
from store.contract import ArtifactInfo, JobResult, Measured, WorkKind
from store.objects import LocalObjects
from worker.outputs import MAX_ARTIFACTS, store_outputs
from worker.protocol import ProtocolError

COSTS = Measured(params=1, macs=1, flops=2, weight_bytes=4, peak_activation_bytes=4, memory_bytes=8, size_bytes=4)


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "objects")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "runner" / "output").mkdir(parents=True)
    return tmp_path / "runner" / "output"


def result(*artifacts: ArtifactInfo) -> JobResult:
    return JobResult(
        met=True,
        constraints=[],
        baseline=COSTS,
        compressed=COSTS,
        equivalence=None,
        layers=[],
        frozen=[],
        artifacts=list(artifacts),
        provenance={},
    )


def listed(name: str, content: bytes, media_type: str = "application/onnx") -> ArtifactInfo:
    return ArtifactInfo(name=name, media_type=media_type, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def claim(attempt: int = 2) -> Claim:
    return Claim(
        id="job_1",
        kind=WorkKind.job,
        tenant_id="local",
        attempt=attempt,
        worker_id="w",
        subject=None,
        max_runtime_s=60,
        troubles=0,
    )


def stored_files(objects: LocalObjects, tmp_path: Path) -> list[str]:
    root = tmp_path / "objects"
    return sorted(str(p.relative_to(root)) for p in (root / "tenants").rglob("*") if p.is_file())


def test_files_are_stored_under_the_attempt_with_a_media_type_that_the_runner_has_no_say_in(objects, output, tmp_path):
    (output / "model.onnx").write_bytes(b"net")
    for name in ("model.py", "model.safetensors", "page.html", "report.json"):
        (output / name).write_bytes(b"{}")
    stored = store_outputs(output.parent, result(listed("model.onnx", b"net", "text/html")), objects, claim())
    assert [(s.name, s.media_type, s.size) for s in stored] == [
        ("model.onnx", "application/onnx", 3),
        ("model.py", "text/x-python", 2),
        ("model.safetensors", "application/vnd.safetensors", 2),
        ("page.html", "text/html", 2),
        ("report.json", "application/json", 2),
    ]
    assert stored[0].object_key == "tenants/local/jobs/job_1/2/model.onnx"
    assert stored[0].sha256 == hashlib.sha256(b"net").hexdigest()
    assert stored_files(objects, tmp_path) == [s.object_key for s in stored]


def _symbolic_link(output: Path) -> None:
    (output / "model.onnx").symlink_to("/etc/passwd")


def _hard_link(output: Path) -> None:
    secret = output.parent / "secret"
    secret.write_text("secret")
    os.link(secret, output / "model.onnx")


def _pipe(output: Path) -> None:
    os.mkfifo(output / "model.onnx")


def _folder(output: Path) -> None:
    (output / "model.onnx").mkdir()


def _hidden_name(output: Path) -> None:
    (output / ".profile").write_text("x")


def _many(output: Path) -> None:
    for number in range(MAX_ARTIFACTS + 1):
        (output / f"file{number}").write_text("x")


@pytest.mark.parametrize("trick", [_symbolic_link, _hard_link, _pipe, _folder, _hidden_name, _many])
def test_what_is_no_plain_file_of_the_runners_own_is_refused_and_nothing_stays_stored(objects, output, tmp_path, trick):
    (output / "a.onnx").write_bytes(b"good")
    trick(output)
    with pytest.raises(ProtocolError):
        store_outputs(output.parent, result(), objects, claim())
    assert stored_files(objects, tmp_path) == []


def test_a_listed_file_that_is_missing_or_different_is_refused(objects, output, tmp_path):
    with pytest.raises(ProtocolError, match=r"model\.onnx"):
        store_outputs(output.parent, result(listed("model.onnx", b"net")), objects, claim())
    (output / "model.onnx").write_bytes(b"other")
    with pytest.raises(ProtocolError, match=r"model\.onnx"):
        store_outputs(output.parent, result(listed("model.onnx", b"net")), objects, claim())
    assert stored_files(objects, tmp_path) == []
