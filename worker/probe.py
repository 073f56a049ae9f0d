"""Which confinement works on this host: every kind is tried on a real runner, strongest first.

A kernel, a container or a security module may refuse any of the calls that confinement needs, or allow them and still
leave a door open, so the probe believes only what a confined runner could and could not do.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.process import RunnerProcess, RunnerSpec
from worker.protocol import INPUT_FOLDER, RUNNER_READABLE, ErrorMessage, ProtocolError, ResultMessage, Task
from worker.sandbox import FIRST_SANDBOX_UID, Policy
from worker.view import gpu_devices

logger = logging.getLogger(__name__)

PROBE_COMMANDS = "worker.runner.self_check"
PROBE_TIMEOUT_S = 20.0
CANARY = b"not for runners"
SHARE_OF_MEMORY = 0.9
LEAST_MEMORY_BYTES = 2 * 2**30


class NoSandbox(Exception):
    """Not even an unconfined runner starts; the message says what each attempt ran into."""


@dataclass(frozen=True)
class Confinement:
    """The confinement in use: its level (1 or 2), its kind, and the policy that runners get."""

    policy: Policy

    @property
    def level(self) -> int:
        return self.policy.level

    @property
    def kind(self) -> str:
        return self.policy.kind + ("+uid" if self.policy.uid is not None else "")

    def for_slot(self, index: int) -> Policy:
        """The policy of one slot. Slots have different users, so that runners cannot reach each other."""
        uid = self.policy.uid
        return self.policy if uid is None else dataclasses.replace(self.policy, uid=uid + index)


def choose_confinement(scratch: Path, hidden: tuple[str, ...], file_bytes: int) -> Confinement:
    """The strongest confinement that works here. scratch: where runner folders are made; hidden: folders to cover;
    file_bytes: the largest file that a runner may write."""
    reasons: list[str] = []
    for policy in _candidates(hidden, file_bytes):
        confinement = Confinement(policy)
        reason = _failure_of(policy, scratch)
        if reason is None:
            logger.info("Sandbox: %s, level %d.", confinement.kind, confinement.level)
            if confinement.level < 2:
                logger.warning("Runners are not cut off from network and files, because: %s", "; ".join(reasons))
            return confinement
        reasons.append(f"{confinement.kind}: {reason}")
    raise NoSandbox("No runner can be started on this host: " + "; ".join(reasons))


def _candidates(hidden: tuple[str, ...], file_bytes: int) -> Iterator[Policy]:
    gpu = bool(gpu_devices())
    memory_bytes = available_memory_bytes()
    root = os.geteuid() == 0

    def policy(kind: str, uid: int | None) -> Policy:
        return Policy(kind=kind, uid=uid, memory_bytes=memory_bytes, file_bytes=file_bytes, gpu=gpu, hidden=hidden)

    linux = sys.platform == "linux"
    if linux and root:
        yield policy("namespaces", FIRST_SANDBOX_UID)
    if linux and shutil.which("bwrap"):
        yield policy("bubblewrap", None)
    if linux:
        yield policy("namespaces", None)
    if root:
        yield policy("process", FIRST_SANDBOX_UID)
    yield policy("process", None)


def available_memory_bytes() -> int:
    """The share of this machine's (or control group's) memory that one runner may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = Path("/sys/fs/cgroup") / name
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            total = min(total, int(text))
    return max(LEAST_MEMORY_BYTES, int(total * SHARE_OF_MEMORY))


def _failure_of(policy: Policy, scratch: Path) -> str | None:
    """Why `policy` does not do what it says on this host; None if it does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        canary = scratch / "canary"
        canary.write_bytes(CANARY)
        canary.chmod(0o600)
        try:
            found = _self_check(RunnerSpec(policy, scratch, threads=1, commands=PROBE_COMMANDS), listener, canary)
            untouched = canary.read_bytes() == CANARY
        except (OSError, ProtocolError) as error:
            return str(error)
        finally:
            canary.unlink()
    if isinstance(found, str):
        return found
    wrong = [name for name in ("imports_engine", "writes_own_folder") if not found[name]]
    if policy.level == 2:
        wrong += [name for name in ("reaches_network", "reads_canary") if found[name]]
        wrong += [] if untouched else ["writes_outside"]
    if policy.uid is not None and found["uid"] != policy.uid:
        wrong.append("uid")
    return ", ".join(wrong) or None


def _self_check(spec: RunnerSpec, listener: socket.socket, canary: Path) -> dict | str:
    """What a confined runner found out about itself, or why it did not get that far."""
    with RunnerProcess(spec) as runner:
        for name, text in (("port", str(listener.getsockname()[1])), ("canary", str(canary))):
            path = runner.folder / INPUT_FOLDER / name
            path.write_text(text)
            path.chmod(RUNNER_READABLE)
        runner.start(Task(kind="catalogue", threads=1, cpu_seconds=int(PROBE_TIMEOUT_S)))
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        while runner.talking and time.monotonic() < deadline:
            for message in runner.read(timeout_s=0.5):
                if isinstance(message, ResultMessage):
                    return message.result
                if isinstance(message, ErrorMessage):
                    return message.error.message
        status = runner.exit_status(grace_s=1)
        return (runner.log_tail() or [f"ended with status {status}"])[-1]
