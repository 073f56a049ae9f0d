"""What a worker answers. Resources that clients read may gain fields."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from store.contract.statuses import ErrorCode

# No float32 is larger, and JSON knows no infinity.
Figure = Annotated[float, Field(ge=0, le=1e38)]
Share = Annotated[float, Field(ge=0, le=1)]


class Resource(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Reported(Resource):
    """A part of a job's result: kept whole, so that what the API shows is what `report.json` holds."""

    model_config = ConfigDict(extra="allow")


class ErrorInfo(Resource):
    """Why a job failed or an upload was rejected."""

    code: ErrorCode
    message: str
    param: str | None = None
    retryable: bool = False
    details: dict[str, Any] = Field(default_factory=dict)
    log_tail: list[str] = Field(default_factory=list)


class LayerProfile(Resource):
    name: str
    type: str
    params: int
    macs: int
    activation_bytes: int
    output_shape: list[int]


class ModelProfile(Resource):
    params: int
    macs: int
    flops: int
    weight_bytes: int
    peak_activation_bytes: int
    memory_bytes: int
    layers: list[LayerProfile]


class ModelInspection(Resource):
    """What the inspection of a model upload found."""

    format: Literal["state_dict", "onnx", "pt2"]
    architecture: str | None
    architecture_args: dict[str, Any]
    input_shape: list[int] | dict[str, list[int]]
    profile: ModelProfile


class ClassCounts(Resource):
    """Examples per class of one split: the least, the most, and each by label; no list for more than 1,000 classes."""

    min: int
    max: int
    counts: list[int] | None


class DatasetInspection(Resource):
    """What the inspection of a dataset upload found. Labels are places in `class_names`, where those are known."""

    format: str
    classes: int | None
    class_names: list[str] | None = None
    splits: dict[Literal["train", "val", "test"], int]
    class_counts: dict[Literal["train", "val", "test"], ClassCounts] | None = None
    image_shape: list[int]
    mean: list[float]
    std: list[float]


class StageProgress(Resource):
    name: str
    status: Literal["pending", "running", "succeeded", "failed", "cancelled", "skipped"]
    step: int | None = None
    steps: int | None = None
    message: str | None = None
    """What a running stage is doing, for a person, for example `Training: loss 0.236, 11,300 images/s`."""


class TrainingEpoch(Resource):
    """What one epoch of recovery training came to: the data of the event `job.epoch`.

    train_accuracy and validation_accuracy with labels, output_error (relative, on held-out images) without.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    epoch: Annotated[int, Field(ge=1, le=1_000_000)]
    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    loss: Figure
    train_accuracy: Share | None = None
    validation_accuracy: Share | None = None
    output_error: Figure | None = None
    learning_rate: Figure
    images_per_s: Figure
    seconds: Figure
    eta_s: Figure


class JobProgress(Resource):
    fraction: float = 0.0
    eta_s: float | None = None
    updated_at: datetime | None = None
    stages: list[StageProgress] = Field(default_factory=list)


class ConstraintResult(Reported):
    metric: str
    kind: str | None
    limit: int | float
    value: int | float
    met: bool


class Latency(Reported):
    p50: float
    p95: float
    batch: int
    threads: int
    runtime: str


class Measured(Reported):
    """Costs of one network; `accuracy` is on the test split, where there is one."""

    params: int
    macs: int
    flops: int
    weight_bytes: int
    peak_activation_bytes: int
    memory_bytes: int
    size_bytes: int
    accuracy: float | None = None
    latency_ms: Latency | None = None


class Equivalence(Reported):
    max_relative_error: float
    passed: bool


class ArtifactInfo(Reported):
    name: str
    media_type: str
    size: int
    sha256: str


class JobResult(Reported):
    """The `result` of a job, and what `report.json` holds."""

    met: bool
    constraints: list[ConstraintResult]
    baseline: Measured
    compressed: Measured
    equivalence: Equivalence | None
    sparse: dict[str, Any] | None = None
    layers: list[dict[str, Any]]
    frozen: list[dict[str, Any]]
    recovery: dict[str, Any] | None = None
    encoding: dict[str, Any] | None = None
    """Bits per weight and accuracy of shared values; None where no encoding and no `model.pwt` was asked for."""
    int8: dict[str, Any] | None = None
    """Accuracy of `model.int8.onnx` beside the float file's."""
    artifacts: list[ArtifactInfo]
    notices: list[dict[str, str]] = Field(default_factory=list)
    """What a delivered form lacks of the upload: `{"artifact", "message"}`, the artifact "" where it concerns all."""
    provenance: dict[str, Any]


class PlannedLayer(Reported):
    """One layer before and after: `out` (channels), `params`, `macs`. `min` and `max` bound what a job's `plan` may say;
    layers of one `group` share their channels, so they get their widths together."""

    name: str
    before: dict[str, Any]
    after: dict[str, Any]
    min: int
    max: int
    group: str


class PlanOutcome(Reported):
    """What a job with this request would do, predicted exactly and without doing it.

    An infeasible budget is an answer too: `feasible` is false, `smallest` is the nearest that can be reached, and
    `error` says what a job would fail with.
    """

    feasible: bool
    predicted: dict[str, Any]
    baseline: dict[str, Any]
    constraints: list[ConstraintResult]
    layers: list[PlannedLayer]
    frozen: list[dict[str, Any]]
    smallest: dict[str, Any] | None = None
    note: str = ""
    error: ErrorInfo | None = None


MethodKind = Literal["removes_channels", "rewrites_layers"]


class MethodInfo(Resource):
    """A method as a worker offers it; `schema` is the JSON schema of its options, `type` included. There,
    `x-needs-labels` lists values of an option that need a labelled dataset."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    type: str
    title: str
    description: str
    paper: str | None = None
    kind: MethodKind | None = None
    """None from a worker that does not say."""
    options_schema: dict[str, Any] = Field(alias="schema")


class ArchitectureInfo(Resource):
    """A named architecture; `args_schema` is the JSON schema of `architecture_args`."""

    name: str
    title: str
    input_shape: list[int]
    args_schema: dict[str, Any]


class Catalogue(Resource):
    """What a worker can do; published when it starts."""

    version: str
    methods: list[MethodInfo]
    architectures: list[ArchitectureInfo]
    devices: list[str]
    versions: dict[str, str]
    sandbox_level: int | None = None
    """1: limits and an identity of its own; 2: also no network and no view of the host's files."""
    sandbox_kind: str | None = None
