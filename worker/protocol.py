"""What supervisor and runner say to each other.

The supervisor writes one `task.json` into the runner's folder and then lines to its standard input: one to start, and
perhaps one that asks for a checkpoint at once. The runner answers with JSON lines on a pipe of its own. A runner may have been taken over by what it opened, so its side is
bounded and checked: line length, message shape, and (`worker.progress`) how many stages it reports.

    folder/
      task.json         the task (supervisor → runner)
      input/model       the uploads that the task names, fetched by the supervisor
      input/dataset
      checkpoint/state  what the run goes on from, put here before it starts and replaced by the runner as it goes
      output/           artifacts, taken from here by the supervisor when the result names them
      tmp/              scratch; also the runner's HOME and /tmp
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from store.contract import Conversion, ErrorInfo, JobRequest, Normalization, TrainingEpoch

PROTOCOL_VERSION = 1
# The longest line is a result: a few hundred bytes per layer of the network.
MAX_LINE_BYTES = 8 * 2**20
MAX_MESSAGE_CHARACTERS = 500
TASK_FILE = "task.json"
INPUT_FOLDER = "input"
CHECKPOINT_FOLDER = "checkpoint"
CHECKPOINT_FILE = f"{CHECKPOINT_FOLDER}/state"
OUTPUT_FOLDER = "output"
SCRATCH_FOLDER = "tmp"
START_LINE = b"start\n"
CHECKPOINT_LINE = b"checkpoint\n"
# The runner may be another user; the folder above keeps everyone else out.
RUNNER_READABLE = 0o644

TaskKind = Literal["job", "plan", "inspect_model", "inspect_dataset", "catalogue"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelInput(_Strict):
    """A model file, relative to the task's folder, and what its uploader said about it."""

    file: str
    sha256: str | None = None
    architecture: str | None = None
    architecture_args: dict[str, Any] = Field(default_factory=dict)
    input_shape: list[int] | dict[str, list[int]] | None = None


class DatasetInput(_Strict):
    """A dataset file, relative to the task's folder, and how its values are to be read."""

    file: str
    sha256: str | None = None
    normalization: Normalization | None = None
    scale: float | None = None
    convert: Conversion | None = None


class Task(_Strict):
    """One thing to do. threads: for the engine's arithmetic. cpu_seconds: the limit over all threads.

    checkpoint_interval_s: how often the state of training is kept in `CHECKPOINT_FILE`; None keeps nothing.
    """

    version: Literal[1] = PROTOCOL_VERSION
    kind: TaskKind
    threads: Annotated[int, Field(ge=1)]
    cpu_seconds: Annotated[int, Field(ge=1)]
    model: ModelInput | None = None
    dataset: DatasetInput | None = None
    request: JobRequest | None = None
    request_sha256: str | None = None
    checkpoint_interval_s: Annotated[float, Field(gt=0)] | None = None


class ProgressMessage(_Strict):
    """A step forward inside a stage."""

    type: Literal["progress"] = "progress"
    stage: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    status: Literal["running", "succeeded", "skipped"]
    step: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    steps: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    message: Annotated[str, Field(max_length=MAX_MESSAGE_CHARACTERS)] | None = None


class EpochMessage(_Strict):
    """An epoch of training has ended."""

    type: Literal["epoch"] = "epoch"
    epoch: TrainingEpoch


class CheckpointMessage(_Strict):
    """About `CHECKPOINT_FILE`. possible: from now on one can be written when it is asked for. written: a new one is there."""

    type: Literal["checkpoint"] = "checkpoint"
    state: Literal["possible", "written"]


class ResumedMessage(_Strict):
    """The run goes on from the checkpoint that it was given: in the middle of `step`, at `number` inside it, or after it."""

    type: Literal["resumed"] = "resumed"
    step: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./ -]{0,127}$")]
    number: Annotated[int, Field(ge=0, lt=2**53)] | None = None


class ResultMessage(_Strict):
    """The end of a task that succeeded; `result` is the contract's type for its kind, as JSON."""

    type: Literal["result"] = "result"
    result: dict[str, Any]


class ErrorMessage(_Strict):
    """The end of a task that failed for a reason that the runner knows."""

    type: Literal["error"] = "error"
    error: ErrorInfo


Message = Annotated[
    ProgressMessage | EpochMessage | CheckpointMessage | ResumedMessage | ResultMessage | ErrorMessage,
    Field(discriminator="type"),
]
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


class ProtocolError(Exception):
    """A runner wrote something that no runner writes."""


def encode(message: Message) -> bytes:
    """One line. Raises ProtocolError when it would be too long to be read back."""
    line = message.model_dump_json().encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"A message of {len(line)} bytes is longer than the {MAX_LINE_BYTES} allowed.")
    return line


class LineReader:
    """Cuts a stream of chunks into messages, never holding more than one line."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that `chunk` completes. Raises ProtocolError."""
        self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise ProtocolError(f"The runner wrote a line longer than {MAX_LINE_BYTES} bytes.")
        return [decode(bytes(line)) for line in lines]


def decode(line: bytes) -> Message:
    """One message. Raises ProtocolError."""
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"The runner wrote a line longer than {MAX_LINE_BYTES} bytes.")
    try:
        return _MESSAGE.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "/".join(str(part) for part in first["loc"])
        raise ProtocolError(
            f"The runner wrote a line that is no message ({where or 'line'}: {first['msg']})."
        ) from error


def write_task(task: Task, folder: Path) -> None:
    path = folder / TASK_FILE
    path.write_text(task.model_dump_json())
    path.chmod(RUNNER_READABLE)


def read_task(folder: Path) -> Task:
    return Task.model_validate_json((folder / TASK_FILE).read_bytes())
