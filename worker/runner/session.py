"""One task from its first message to its last."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from store.contract import ErrorCode, ErrorInfo
from worker.protocol import CHECKPOINT_LINE, START_LINE, ErrorMessage, Message, ResultMessage, Task, encode
from worker.sandbox import limit_cpu_seconds

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAILED = 1
# A status above this says which signal ended the runner, as shells say it.
KILLED_BY = 128
MAX_ORDER_BYTES = 64


class Tell:
    """The line to the supervisor: called with a message, it sends it. `checkpoint_asked` is set when a checkpoint is wanted
    at once."""

    def __init__(self, messages: BinaryIO, orders: int) -> None:
        """orders: the descriptor on which the supervisor's lines come."""
        self._messages = messages
        self._orders = orders
        self.checkpoint_asked = threading.Event()

    def __call__(self, message: Message) -> None:
        self._messages.write(encode(message))

    def listen(self) -> None:
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def _listen(self) -> None:
        # Not through a buffered file: its lock, held by this thread while it waits, would hang the interpreter's end.
        while (line := read_line(self._orders)) is not None:
            if line == CHECKPOINT_LINE:
                self.checkpoint_asked.set()


# What a command gets: the task, its folder, and the line to the supervisor. What it gives: the result as JSON.
Command = Callable[[Task, Path, Tell], Mapping[str, Any]]


def read_line(descriptor: int) -> bytes | None:
    """The next line, read without taking anything of the one after it; None at the end."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte or len(line) > MAX_ORDER_BYTES:
            return None
        line += byte
    return line


def told_to_start(descriptor: int) -> bool:
    """Wait for the supervisor's word; whether it came."""
    return read_line(descriptor) == START_LINE


def run_task(task: Task, folder: Path, commands: Mapping[str, Command], messages: BinaryIO, orders: int) -> int:
    """Run the command of the task's kind and report its end; the process's exit status."""
    limit_cpu_seconds(task.cpu_seconds)
    send = Tell(messages, orders)
    send.listen()
    try:
        result = commands[task.kind](task, folder, send)
        # The result goes over as strict JSON: a NaN in a report would be no JSON for the client.
        send(ResultMessage(result=json.loads(json.dumps(result, allow_nan=False))))
    except BrokenPipeError:
        return FAILED
    except Exception as error:  # whatever the engine raises is how the task ended, and is reported as that
        # For the operator: standard error goes to the log, and only its last lines to the job.
        traceback.print_exc(file=sys.stderr)
        if isinstance(number := getattr(error, "signal_number", None), int):
            # A process that this one had started was killed: that is this runner's end, too, and not the task's fault.
            return KILLED_BY + number
        send(ErrorMessage(error=describe(error)))
        return FAILED
    return 0


def describe(error: Exception) -> ErrorInfo:
    """The error as the user sees it: the engine's own code and words, or a short statement without a traceback."""
    if _is_from_engine(error):
        # A code of the engine that jobs do not have keeps its words.
        return ErrorInfo(
            code=ErrorCode.__members__.get(error.code, ErrorCode.internal),
            message=error.message,
            param=error.param,
            details=json.loads(json.dumps(error.details, default=str)),
        )
    # By now the process is confined, and the engine has been imported by the command.
    from core.errors import is_out_of_memory

    if is_out_of_memory(error):
        return ErrorInfo(
            code=ErrorCode.out_of_memory,
            message="The worker ran out of memory on this task. Use a smaller batch size (recovery.batch_size), "
            "a smaller dataset, or a worker with more memory.",
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return ErrorInfo(
            code=ErrorCode.internal,
            message="The worker's disk is full. Try again once there is room on it, or use a smaller model or dataset.",
            retryable=True,
        )
    return ErrorInfo(
        code=ErrorCode.internal,
        message=f"An unexpected {type(error).__name__} stopped the task; the worker's log has the details.",
        retryable=True,
    )


def _is_from_engine(error: Exception) -> bool:
    """Told by its shape: this module must not import the engine before the process is confined."""
    return isinstance(getattr(error, "code", None), str) and all(
        hasattr(error, name) for name in ("message", "param", "details")
    )
