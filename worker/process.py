"""A runner seen from the supervisor: its folder, its process, its messages, its log, its end."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from worker.protocol import (
    CHECKPOINT_FOLDER,
    CHECKPOINT_LINE,
    INPUT_FOLDER,
    OUTPUT_FOLDER,
    SCRATCH_FOLDER,
    START_LINE,
    LineReader,
    Message,
    Task,
    write_task,
)
from worker.sandbox import KILL_REQUEST, Policy, environment, wrap_command

RUNNER_PROGRAM = Path(__file__).parent / "runner" / "__main__.py"
DEFAULT_COMMANDS = "worker.runner.commands"
CHUNK_BYTES = 2**18
LOG_TAIL_BYTES = 32 * 2**10
LOG_TAIL_LINES = 50
LOG_LINE_CHARACTERS = 500
FOLDER_PREFIX = "runner-"
KILL_REQUEST_GRACE_S = 2.0
BLOCK_BYTES = 4096


@dataclass(frozen=True)
class RunnerSpec:
    """How runners are made: confinement, the folder that their folders lie in, threads, and the command table.

    visible_gpus: what they find in `CUDA_VISIBLE_DEVICES`; None leaves it as it is here.
    """

    policy: Policy
    scratch: Path
    threads: int
    commands: str = DEFAULT_COMMANDS
    visible_gpus: str | None = None


class RunnerProcess:
    """One confined process with a fresh folder. Used once; as a context manager it leaves neither process nor folder."""

    def __init__(self, spec: RunnerSpec) -> None:
        """Start the process; it gets ready and waits for a task. Raises OSError."""
        self.spec = spec
        self.folder = make_folder(spec)
        self._reader = LineReader()
        self._log = bytearray()
        self._exit_status: int | None = None
        self._messages, message_fd = os.pipe()
        command = [sys.executable, "-I", "-B", str(RUNNER_PROGRAM), str(self.folder), "--fd", str(message_fd)]
        command += ["--parent", str(os.getpid()), "--policy", spec.policy.to_json(), "--commands", spec.commands]
        try:
            self._process = subprocess.Popen(
                wrap_command(
                    spec.policy, self.folder, command, [spec.commands] if spec.commands.endswith(".py") else []
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=(message_fd,),
                env=environment(self.folder, spec.threads, spec.visible_gpus),
                cwd=self.folder,
                start_new_session=True,
            )
        except OSError:
            os.close(self._messages)
            remove_folder(self.folder)
            raise
        finally:
            os.close(message_fd)
        self._open = {self._messages, self._process.stdout.fileno()}
        for descriptor in self._open:
            os.set_blocking(descriptor, False)

    def __enter__(self) -> RunnerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._exit_status is None and not self._ended()

    @property
    def talking(self) -> bool:
        """Whether more messages can come."""
        return self._messages in self._open

    def start(self, task: Task) -> None:
        """Give the runner its task; the files that it names must be in place."""
        write_task(task, self.folder)
        self._order(START_LINE)

    def ask_for_checkpoint(self) -> None:
        """Have the runner write one as soon as it can."""
        self._order(CHECKPOINT_LINE)

    def read(self, timeout_s: float) -> list[Message]:
        """The messages that have come, waiting at most `timeout_s` for something. Raises ProtocolError."""
        # Not select(), which knows no descriptor above 1023: a server with many connections has those.
        watched = select.poll()
        for descriptor in self._open:
            watched.register(descriptor, select.POLLIN)
        messages: list[Message] = []
        for descriptor, _ in watched.poll(timeout_s * 1000):
            chunk = os.read(descriptor, CHUNK_BYTES)
            if not chunk:
                self._open.discard(descriptor)
            elif descriptor == self._messages:
                messages += self._reader.feed(chunk)
            else:
                self._log += chunk
                del self._log[:-LOG_TAIL_BYTES]
        return messages

    def terminate(self, grace_s: float, keep_waiting: Callable[[], bool] = lambda: True) -> None:
        """Ask the runner to end, and end it after `grace_s` seconds (or when `keep_waiting` says no)."""
        self._signal(signal.SIGTERM)
        self._wait(grace_s, keep_waiting)
        self.kill()

    def kill(self) -> int:
        """End the runner with everything it has started; its exit status (negative: the signal that ended it)."""
        if self._exit_status is None:
            if self.spec.policy.kind == "namespaces":
                self._signal(KILL_REQUEST)
                self._wait(KILL_REQUEST_GRACE_S)
            # Before the process is reaped: until then its group's number cannot belong to anyone else.
            self._signal(signal.SIGKILL)
            self._exit_status = _normalised(self._process.wait())
            self._drain_log()
        return self._exit_status

    def exit_status(self, grace_s: float) -> int:
        """The exit status of a runner that should be ending; it is killed after `grace_s` seconds."""
        self._wait(grace_s)
        return self.kill()

    def log_tail(self) -> list[str]:
        """The last lines of standard output and error, made safe to show."""
        text = bytes(self._log).decode("utf-8", errors="replace")
        printable = ("".join(c for c in line if c.isprintable() or c == "\t") for line in text.splitlines())
        return [line[:LOG_LINE_CHARACTERS] for line in printable if line.strip()][-LOG_TAIL_LINES:]

    def discard(self) -> None:
        """Leave nothing: end the process, close its pipes, remove its folder."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # closing writes what is buffered, and nobody reads it
                stream.close()
        if self._messages >= 0:
            os.close(self._messages)
            self._messages = -1
        self._open.clear()
        remove_folder(self.folder)

    def _order(self, line: bytes) -> None:
        # A runner that has died meanwhile shows as the end of its messages.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # all of the group have ended
            os.killpg(self._process.pid, number)

    def _wait(self, timeout_s: float, keep_waiting: Callable[[], bool] = lambda: True) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._ended() and time.monotonic() < deadline and keep_waiting():
            time.sleep(0.01)

    def _ended(self) -> bool:
        """Whether the process has ended, without reaping it."""
        if self._exit_status is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is not None

    def _drain_log(self) -> None:
        """What is left in the log's pipe. A process that escaped the group may hold it open, so this never waits."""
        descriptor = self._process.stdout.fileno()
        with contextlib.suppress(BlockingIOError):
            while descriptor in self._open and (chunk := os.read(descriptor, CHUNK_BYTES)):
                self._log += chunk
                del self._log[:-LOG_TAIL_BYTES]


def make_folder(spec: RunnerSpec) -> Path:
    """A fresh folder for one runner; only `checkpoint`, `output` and `tmp` belong to the runner's user."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=spec.scratch))
    folder.chmod(0o755)
    for name in (INPUT_FOLDER, CHECKPOINT_FOLDER, OUTPUT_FOLDER, SCRATCH_FOLDER, "root"):
        (folder / name).mkdir()
        (folder / name).chmod(0o755)
    if spec.policy.uid is not None:
        for name in (CHECKPOINT_FOLDER, OUTPUT_FOLDER, SCRATCH_FOLDER):
            os.chown(folder / name, spec.policy.uid, spec.policy.uid)
    return folder


def bytes_below(folder: Path, *, stop_at: int) -> int:
    """Disk space of a runner's folder, counted no further than just beyond `stop_at`.

    Even an empty file weighs a block, so that a million of them end the count, too. What the runner hides from us (it may
    set modes as it likes) or has deleted and still holds open is not seen.
    """
    total, folders = 0, [str(folder)]
    while folders and total <= stop_at:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    state = entry.stat(follow_symlinks=False)
                    total += max(state.st_blocks * 512, BLOCK_BYTES)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return total


def remove_folder(folder: Path) -> None:
    """Delete a runner's folder, whatever modes it has set in it. What resists is left to the sweeper."""

    def open_up(function: Callable[..., Any], path: str, _: Any) -> None:
        # Nothing below is followed: a link is removed as a link.
        parent = Path(path).parent
        with contextlib.suppress(OSError):
            for part in (parent, Path(path)):
                if part.is_relative_to(folder) and not part.is_symlink():
                    part.chmod(0o700)
            if Path(path).is_dir() and not Path(path).is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                Path(path).unlink(missing_ok=True)

    shutil.rmtree(folder, onerror=open_up)


def _normalised(status: int) -> int:
    """bubblewrap reports a signal as 128 + its number."""
    return 128 - status if 128 < status < 128 + signal.NSIG else status
