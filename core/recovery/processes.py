"""Starts the processes of a team on this machine, and notices when one of them is gone.

The first process is the one that recovers; the others run this file's `main`, get everything in one file of a folder of
their own, and find each other through another. They need a network interface that reaches this machine itself, or, between
GPUs, NCCL. A process that has lost the first one ends. When another is killed, the first raises `ProcessLost`, whatever it
was waiting for, so that the run can be taken up from its checkpoint.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch
from torch import distributed as dist

from core.errors import first_line
from core.recovery.team import ALONE, Team

# A process imports torch and reads what it gets; on a busy machine that takes its time.
START_TIMEOUT_S = 600.0
# While the first process looks at validation images or writes a checkpoint, the others wait for it.
STEP_TIMEOUT = timedelta(hours=2)
MEETING_TIMEOUT = timedelta(minutes=5)
END_TIMEOUT_S = 30.0
LAST_WORDS_S = 5.0
# After another process is gone, the first hears of it from the next exchange, as a rule at once.
NOTICE_S = 20.0
LOOK_EVERY_S = 0.5
_READY = b"ready\n"
_CONTENT, _MEETING = "content", "meeting"
# The path on which modules are found goes along, as this process may have set up its own.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from core.recovery import processes; processes.main()"
)


class ProcessLost(RuntimeError):
    """A process of the training was ended from outside, by signal `signal_number`."""

    def __init__(self, rank: int, signal_number: int) -> None:
        super().__init__(f"Process {rank} of the training was ended by signal {signal_number}.")
        self.signal_number = signal_number


@dataclass(frozen=True)
class Gathering:
    """A team as its first process sees it. note: why it is smaller than was asked for."""

    team: Team
    note: str | None = None


def gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@contextmanager
def gathered(content: Mapping[str, Any], size: int, seed: int, device: torch.device) -> Iterator[Gathering]:
    """A team of `size`, each other process running `core.recovery.training.attend(content, team, device)`.

    content: can be pickled. The processes are gone when the block ends. Where they cannot be started or cannot reach each
    other, the team is `ALONE`, with a note. Raises ProcessLost out of the block.
    """
    if size == 1:
        yield Gathering(ALONE)
        return
    with tempfile.TemporaryDirectory(prefix="team-") as name:
        folder = Path(name)
        with (folder / _CONTENT).open("wb") as file:
            pickle.dump(dict(content), file, protocol=pickle.HIGHEST_PROTOCOL)
        others = _Others(folder, size, seed, device)
        try:
            others.start()
            group = _join(folder / _MEETING, 0, size, device)
        except (OSError, RuntimeError) as error:
            others.end(at_once=True)
            _leave()
            yield Gathering(
                ALONE, f"One process instead of {size}, as they cannot work together: {first_line(error, 300)}"
            )
            return
        threading.Thread(target=others.watch, name="team", daemon=True).start()
        done = False
        try:
            yield Gathering(Team(0, size, seed, group))
            done = True
        except Exception as error:
            if (cause := others.cause(error)) is error:
                raise
            raise cause from error
        finally:
            others.finished.set()
            _leave()
            others.end(at_once=not done)


class _Others:
    def __init__(self, folder: Path, size: int, seed: int, device: torch.device) -> None:
        self._folder, self._size, self._seed, self._device = folder, size, seed, device
        self._processes: list[subprocess.Popen[bytes]] = []
        self.finished = threading.Event()

    def start(self) -> None:
        """Start all and wait until each has its content. Raises RuntimeError."""
        threads = max(1, torch.get_num_threads() // self._size)
        for rank in range(1, self._size):
            told = [str(self._folder), rank, self._size, self._seed, self._device.type, threads]
            command = [sys.executable, "-I", "-B", "-c", _PROGRAM, json.dumps(sys.path), json.dumps(told)]
            self._processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0))
        deadline = time.monotonic() + START_TIMEOUT_S
        for rank, process in enumerate(self._processes, start=1):
            if _line(process.stdout, deadline) != _READY:
                raise RuntimeError(self._words(rank) or f"process {rank} did not start")

    def watch(self) -> None:
        """Until the work is done: end this process, if it waits in vain for another that is gone."""
        while not self.finished.wait(LOOK_EVERY_S):
            if (lost := self._lost()) is not None and not self.finished.wait(NOTICE_S):
                print(lost, file=sys.stderr, flush=True)
                os._exit(128 + lost.signal_number)

    def cause(self, error: Exception) -> Exception:
        """What an error of the first process comes from: the end of another, another's error, or itself."""
        if isinstance(error, dist.DistError) or any(
            word in str(error).lower() for word in ("gloo", "nccl", "connection")
        ):
            deadline = time.monotonic() + END_TIMEOUT_S / 3
            while time.monotonic() < deadline and all(process.poll() is None for process in self._processes):
                time.sleep(0.05)
            if (lost := self._lost()) is not None:
                return lost
            for rank in range(1, self._size):
                if words := self._words(rank):
                    return RuntimeError(f"Process {rank} of the training failed: {words}")
        return error

    def end(self, *, at_once: bool) -> None:
        """Let all end, and end those that do not."""
        deadline = time.monotonic() + (0.0 if at_once else END_TIMEOUT_S)
        for process in self._processes:
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        self._processes.clear()

    def _lost(self) -> ProcessLost | None:
        for rank, process in enumerate(self._processes, start=1):
            status = process.poll()
            if status is not None and status < 0:
                return ProcessLost(rank, -status)
        return None

    def _words(self, rank: int) -> str | None:
        path = _error_file(self._folder, rank)
        return path.read_text(encoding="utf-8") if path.exists() else None


def main() -> None:
    """One process that is not the first: get the content, join, attend, end."""
    folder, rank, size, seed, kind, threads = json.loads(sys.argv[2])
    threading.Thread(target=_end_with_first, name="lifeline", daemon=True).start()
    try:
        from core.recovery.training import attend

        torch.set_num_threads(threads)
        with (Path(folder) / _CONTENT).open("rb") as file:
            # Safe: written a moment ago by the process that started this one, in a folder that nobody else can open, of
            # what it built itself; no byte of an upload is taken for a pickle. Multiprocessing would pickle as well, run
            # the program's main module again, and pass tensors through /dev/shm, of which a container has 64 MiB.
            content = pickle.load(file)
        device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        os.write(1, _READY)
        group = _join(Path(folder) / _MEETING, rank, size, device)
        attend(content, Team(rank, size, seed, group), device)
        _leave()
    except Exception as error:
        # The first process may be gone, and its folder with it.
        with suppress(OSError):
            _error_file(Path(folder), rank).write_text(first_line(error, 300), encoding="utf-8")
        traceback.print_exc()
        os._exit(1)


def _join(meeting: Path, rank: int, size: int, device: torch.device) -> dist.ProcessGroup:
    """Meet the others. Raises RuntimeError where that is not possible or takes too long."""
    # Everybody is on this machine; what its name resolves to may be out of reach, or nothing.
    if sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    store = dist.FileStore(str(meeting), size)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=MEETING_TIMEOUT)
    return dist.new_group(timeout=STEP_TIMEOUT)


def _leave() -> None:
    if dist.is_initialized():
        # What has lost its others may be unable to say good-bye.
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _end_with_first() -> None:
    # Nobody ever writes: this returns when the first process has closed its end, or is gone.
    os.read(0, 1)
    time.sleep(LAST_WORDS_S)
    os._exit(1)


def _line(stream: IO[bytes], deadline: float) -> bytes:
    """The next line, or what came of it before the deadline or the end."""
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        byte = os.read(stream.fileno(), 1) if ready else b""
        if not byte:
            break
        line += byte
    return line


def _error_file(folder: Path, rank: int) -> Path:
    return folder / f"error-{rank}"
