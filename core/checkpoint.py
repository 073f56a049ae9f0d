"""What a run needs to go on after its process has died: the results of finished steps, and the state of one unfinished.

A checkpoint is one safetensors file, written whole beside its place and moved onto it, so that a reader finds the old
one or the new one and never half of one. It belongs to one request on one version of the engine (`fingerprint`) and
carries a digest of what is in it; a run that finds another's, or a damaged one, starts from the beginning. What is
cheap to compute again (intake, plan, surgery) is not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

INTERVAL_S = 120.0
_STEPS, _FINGERPRINT, _DIGEST = "steps", "fingerprint", "digest"
# Of what the engine keeps in a checkpoint; a checkpoint of another form is another request's.
_FORM = 2


def fingerprint(request: Mapping[str, Any], device: str) -> str:
    """Of everything that decides what a run computes: the request with the digests of its files, as JSON can say it;
    the kind of device; the versions of the engine and of torch."""
    from core.version import VERSION

    parts = {"request": dict(request), "device": device, "engine": VERSION, "torch": torch.__version__, "form": _FORM}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Saved:
    """values: JSON. tensors: by name, on any device; they come back on the CPU."""

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Checkpoint:
    """The steps of one run that are behind it. Every method may be called at any time; without a path nothing is kept,
    and what cannot be written is not kept, either: the run goes on.

    interval_s: how often `due` asks for the state of an unfinished step. asked: whether somebody wants it at once,
    because this process is about to end. written: told after each new file. resumed: told once, with a step and how far
    that was, when what an earlier process left has been put to use.
    """

    def __init__(
        self,
        path: Path | None = None,
        fingerprint: str = "",
        *,
        interval_s: float = INTERVAL_S,
        asked: Callable[[], bool] = lambda: False,
        written: Callable[[], None] = lambda: None,
        resumed: Callable[[str, int | None], None] = lambda step, number: None,
    ) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._interval_s = interval_s
        self._asked = asked
        self._written = written
        self._resumed = resumed
        self._used: tuple[str, int | None] | None = None
        self._at = time.monotonic()
        self._finished: dict[str, Saved] = {}
        self._partial: tuple[str, Saved] | None = None
        if path is not None and path.exists():
            self._read(path)
        self._unused = self.left_at

    def finished(self, step: str) -> Saved | None:
        """The result of a step that an earlier process, or this one, finished."""
        return self._finished.get(step)

    def finish(self, step: str, result: Saved) -> None:
        """Keep the result of a step; the state of the unfinished one is no longer needed."""
        self._finished[step] = result
        self._partial = None
        self._tell_resumed()
        self._write()

    def partial(self, step: str) -> Saved | None:
        """The state in which this step was left."""
        return self._partial[1] if self._partial is not None and self._partial[0] == step else None

    @property
    def left_at(self) -> tuple[str, int | None] | None:
        """Where the latest file stands: its unfinished step and how far that is, or the last finished one."""
        if self._partial is not None:
            name, saved = self._partial
            number = saved.values.get("step")
            return name, number if isinstance(number, int) else None
        return (list(self._finished)[-1], None) if self._finished else None

    def use(self, step: str, number: int | None = None) -> None:
        """Say that the run has gone on from what was left of this step, from `number` inside it or from its end.

        `resumed` hears of the step at which the earlier process was, or, if the run takes another way, of the last step
        that it did not have to repeat.
        """
        if self._unused is None:
            return
        self._used = (step, number)
        if step == self._unused[0]:
            self._tell_resumed()

    def _tell_resumed(self) -> None:
        if self._unused is not None and self._used is not None:
            self._unused = None
            self._resumed(*self._used)

    @property
    def due(self) -> bool:
        """Whether `save` should be called now."""
        if self._path is None:
            return False
        return self._asked() or time.monotonic() - self._at >= self._interval_s

    def save(self, step: str, state: Saved) -> None:
        """Keep the state of an unfinished step."""
        self._partial = (step, state)
        self._tell_resumed()
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        steps = [(name, True, saved) for name, saved in self._finished.items()]
        if self._partial is not None:
            steps.append((self._partial[0], False, self._partial[1]))
        tensors, described = {}, []
        for index, (name, finished, saved) in enumerate(steps):
            described.append({"name": name, "finished": finished, "values": dict(saved.values)})
            for key, tensor in saved.tensors.items():
                # A file holds no two names for one storage: each is a copy of its own.
                tensors[f"{index}/{key}"] = tensor.detach().to("cpu", copy=True).contiguous()
        said = json.dumps(described)
        about = {_FINGERPRINT: self._fingerprint, _STEPS: said, _DIGEST: digest_of(tensors, said)}
        beside = self._path.with_name(self._path.name + ".new")
        try:
            save_file(tensors, beside, metadata=about)
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(self._path)
        except (OSError, SafetensorError) as error:
            logger.warning("A checkpoint could not be written: %s", error)
            beside.unlink(missing_ok=True)
            self._at = time.monotonic()
            return
        self._at = time.monotonic()
        self._written()

    def _read(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get(_FINGERPRINT) != self._fingerprint:
                    return
                names = list(file.keys())
                found = {name: file.get_tensor(name) for name in names}
            if about.get(_DIGEST) != digest_of(found, about.get(_STEPS, "")):
                raise ValueError("its digest is not that of its content")
            steps = [(step["name"], step["finished"], step["values"]) for step in json.loads(about[_STEPS])]
            tensors: list[dict[str, Tensor]] = [{} for _ in steps]
            for name, tensor in found.items():
                index, _, key = name.partition("/")
                tensors[int(index)][key] = tensor
        except (SafetensorError, OSError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
            # It costs its steps and nothing else.
            logger.warning("The checkpoint is damaged, so the run begins anew: %s", error)
            return
        for (name, finished, values), own in zip(steps, tensors, strict=True):
            if finished:
                self._finished[name] = Saved(values, own)
            else:
                self._partial = (name, Saved(values, own))


def digest_of(tensors: Mapping[str, Tensor], said: str = "") -> str:
    """Of tensors on the CPU by name, and of what is said of them."""
    digest = hashlib.sha256(said.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
