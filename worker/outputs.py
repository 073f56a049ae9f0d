"""A runner's output folder becomes stored artifacts, with nothing taken on trust.

The folder was written by a process that may have been taken over: a link in it could point at anything the
supervisor can read, a name could leave the folder, a digest in the result could be a wish.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from store.claims import Claim, StoredArtifact
from store.contract import JobResult
from store.objects import ObjectStore
from worker.protocol import OUTPUT_FOLDER, ProtocolError

CHUNK_BYTES = 2**20
MAX_ARTIFACTS = 64
ARTIFACT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
MEDIA_TYPES = {
    ".onnx": "application/onnx",
    ".safetensors": "application/vnd.safetensors",
    ".py": "text/x-python",
    ".json": "application/json",
    ".html": "text/html",
}
DEFAULT_MEDIA_TYPE = "application/octet-stream"


def store_outputs(folder: Path, result: JobResult, objects: ObjectStore, claim: Claim) -> list[StoredArtifact]:
    """Store every file of the output folder. Raises ProtocolError if files and result contradict each other."""
    listed = {artifact.name: artifact for artifact in result.artifacts}
    names = sorted(entry.name for entry in os.scandir(folder / OUTPUT_FOLDER))
    if len(names) > MAX_ARTIFACTS:
        raise ProtocolError(f"The runner left {len(names)} files, more than {MAX_ARTIFACTS}.")
    missing = listed.keys() - set(names)
    if missing:
        raise ProtocolError(f"The result lists artifacts that are not there: {sorted(missing)}.")
    stored: list[StoredArtifact] = []
    try:
        for name in names:
            artifact = _store(folder / OUTPUT_FOLDER, name, objects, claim)
            stored.append(artifact)
            if name in listed and (artifact.size, artifact.sha256) != (listed[name].size, listed[name].sha256):
                raise ProtocolError(f"The artifact {name} is not the file that the result describes.")
    except BaseException:
        delete_outputs(stored, objects)
        raise
    return stored


def delete_outputs(stored: list[StoredArtifact], objects: ObjectStore) -> None:
    """Take back what no finished job refers to."""
    for artifact in stored:
        objects.delete(artifact.object_key)


def _store(folder: Path, name: str, objects: ObjectStore, claim: Claim) -> StoredArtifact:
    if not ARTIFACT_NAME.fullmatch(name):
        raise ProtocolError(f"The runner left a file with a forbidden name ({name[:100]!r}).")
    with plain_file(folder / name) as source, objects.open_writer(claim.object_key(name)) as writer:
        while chunk := os.read(source, CHUNK_BYTES):
            writer.write(chunk)
        written = writer.commit()
    return StoredArtifact(
        name=name, media_type=_media_type(name), size=written.size, sha256=written.sha256, object_key=written.key
    )


@contextlib.contextmanager
def plain_file(path: Path) -> Iterator[int]:
    """A descriptor of a plain file that is no link, symbolic or hard. Raises ProtocolError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ProtocolError(f"The runner left {path.name}, which cannot be read as a plain file.") from error
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
            raise ProtocolError(f"The runner left {path.name}, which is not a plain file.")
        yield descriptor
    finally:
        os.close(descriptor)


def _media_type(name: str) -> str:
    """From the name alone: browsers act on this type, so the runner has no say in it."""
    return MEDIA_TYPES.get(Path(name).suffix, DEFAULT_MEDIA_TYPE)
