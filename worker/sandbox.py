"""Confinement of a runner: whatever an upload makes it do, it stays in one folder, offline, and ends.

Level 1, on every host: a process group of its own, resource limits, a clean environment, no way to gain privileges,
an unprivileged user where we are root, and death together with the supervisor. Level 2, where the host allows it: also
no network, no other processes, and a file system that shows the interpreter, our code and the runner's own folder
only. A runner confines itself before it imports torch or opens an upload.

Kinds: `bubblewrap` wraps the runner's command; `namespaces` does the same from inside with Linux's own calls;
`process` is level 1 alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from worker import linux
from worker.view import View, bubblewrap_arguments, enter_view

SandboxKind = Literal["bubblewrap", "namespaces", "process"]
# Outside the ranges that systems give to people, services and containers.
FIRST_SANDBOX_UID = 64_900
# The least that the largest file may have: an artifact is at most a model's size, and uploads have a few GiB.
FILE_BYTES = 16 * 2**30
OPEN_FILES = 1024
TASKS_PER_CORE = 8
SPARE_TASKS = 512
# Asks the outer process of a `namespaces` runner to kill and reap the confined one. Killing both at once would leave the
# latter to the host's init, and a container may have none that reaps.
KILL_REQUEST = signal.SIGQUIT
KEPT_VARIABLES = ("LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Policy:
    """How one runner is confined.

    uid: the unprivileged user (and group) to become, None to keep our own. memory_bytes: private writable memory per
    process. file_bytes: the largest file, from which the engine also takes how large a decoded dataset may be. gpu:
    whether the host's GPU devices are shown. hidden: folders to cover where the view would show them.
    """

    kind: SandboxKind
    uid: int | None
    memory_bytes: int
    file_bytes: int
    gpu: bool
    hidden: tuple[str, ...]

    @property
    def level(self) -> int:
        return 1 if self.kind == "process" else 2

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Policy:
        values = json.loads(text)
        return Policy(**{**values, "hidden": tuple(values["hidden"])})


def environment(folder: Path, threads: int, visible_gpus: str | None) -> dict[str, str]:
    """All that a runner inherits: no key, no address and no token of the service."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    if visible_gpus is not None:
        kept["CUDA_VISIBLE_DEVICES"] = visible_gpus
    scratch = str(folder / "tmp")
    return {
        "LANG": "C.UTF-8",
        **kept,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": scratch,
        "TMPDIR": scratch,
        "USER": "pennyweight",
        "LOGNAME": "pennyweight",
        "OMP_NUM_THREADS": str(threads),
        # Threads that spin while they wait take the cores that the others need; on a shared host that costs a factor.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def wrap_command(policy: Policy, folder: Path, command: list[str], reads: Sequence[str] = ()) -> list[str]:
    """The command to execute for a runner: itself, or itself inside bubblewrap, where it also sees `reads`."""
    if policy.kind != "bubblewrap":
        return command
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bubblewrap (bwrap) is not on PATH")
    view = View.of_interpreter(folder, gpu=policy.gpu, also=reads)
    options = [
        "--unshare-all",
        "--die-with-parent",
        "--cap-drop",
        "ALL",
        "--hostname",
        "sandbox",
        "--chdir",
        str(folder),
    ]
    return [program, *options, *bubblewrap_arguments(view, policy.hidden), "--", *command]


def enter(policy: Policy, folder: Path, *, message_fd: int, parent_pid: int) -> None:
    """Confine this process. Called once, first thing in a runner, while it has a single thread.

    message_fd: the one descriptor besides the standard three that the confined process keeps. parent_pid: the
    supervisor, with which the runner dies. With `namespaces` the confined process is a child of the one that called;
    the caller then only passes its end on and never returns. Raises OSError where the host refuses.
    """
    os.umask(0o022)
    # The kernel's out-of-memory killer takes a runner before it takes the server.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if policy.kind == "namespaces":
        view = View.of_interpreter(folder, gpu=policy.gpu)
        _enter_namespaces(policy, message_fd, parent_pid)
        enter_view(view, policy.hidden)
    _limit_resources(policy)
    if sys.platform == "linux":
        linux.bound_capabilities()
    if policy.uid is not None:
        os.setgroups([])
        os.setresgid(policy.uid, policy.uid, policy.uid)
        os.setresuid(policy.uid, policy.uid, policy.uid)
    if sys.platform == "linux":
        linux.drop_capabilities()
        linux.forbid_new_privileges()
        if policy.kind == "process":
            _die_with(parent_pid)
    os.chdir(folder)


def _enter_namespaces(policy: Policy, message_fd: int, parent_pid: int) -> None:
    spaces = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWPID | linux.CLONE_NEWUTS
    _die_with(parent_pid)
    uid, gid = os.getuid(), os.getgid()
    if policy.uid is not None:
        linux.unshare(spaces)
    else:
        # The way to these namespaces without being root: a user namespace that maps our own user onto itself.
        linux.unshare(linux.CLONE_NEWUSER | spaces)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    # The processes of one training meet there; nobody else is in this namespace. Without it one process trains alone.
    with contextlib.suppress(OSError):
        linux.raise_loopback()
    lifeline, held_by_outer = os.pipe()
    child = os.fork()
    if child:
        os.close(lifeline)
        _pass_on_the_end_of(child, message_fd)
    # Signals for the runner reach the outer process, which passes them on.
    os.setpgid(0, 0)
    os.close(held_by_outer)
    linux.die_with_parent(signal.SIGKILL)
    # The outer process may have ended before the line above; then its end of this pipe is closed.
    ready, _, _ = select.select([lifeline], [], [], 0)
    if ready:
        os._exit(1)
    os.close(lifeline)


def _pass_on_the_end_of(child: int, message_fd: int) -> None:
    """The outer process: hold nothing open, pass signals on, reap the confined process and end as it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, signal.SIGTERM))
    signal.signal(KILL_REQUEST, lambda number, frame: os.kill(child, signal.SIGKILL))
    for descriptor in (0, 1, 2, message_fd):
        os.close(descriptor)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _die_with(parent: int) -> None:
    """End when the parent ends, even if it has ended already."""
    linux.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _limit_resources(policy: Policy) -> None:
    """Private writable memory rather than address space: CUDA builds of torch map far more than they use."""
    limits: Mapping[int, int] = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: policy.memory_bytes,
        resource.RLIMIT_FSIZE: policy.file_bytes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        **({resource.RLIMIT_NPROC: _task_limit()} if policy.uid is not None or policy.level == 2 else {}),
    }
    for kind, wanted in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (limit, limit))


def limit_cpu_seconds(seconds: int) -> None:
    """A second end for endless loops, behind the supervisor's clock."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def _task_limit() -> int:
    """Processes and threads: counted per user, so only a user or a namespace of the runner's own makes it meaningful."""
    return SPARE_TASKS + TASKS_PER_CORE * (os.cpu_count() or 1)
