"""What a user may ask. Unknown fields are refused (422 with the field's pointer)."""

from __future__ import annotations

import base64
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _at_least_one(value: float) -> float:
    """What is counted comes in whole units, so an absolute limit below 1 is a fraction in the wrong field."""
    if value < 1:
        raise ValueError("an absolute limit is at least 1; a fraction of the original goes into max_ratio")
    return value


def _signing_secret(value: str) -> str:
    """Standard Webhooks: `whsec_` and 24 to 64 bytes in base64."""
    try:
        size = len(base64.b64decode(value.removeprefix("whsec_"), validate=True))
    except ValueError as error:
        raise ValueError("a secret is whsec_ followed by base64") from error
    if not value.startswith("whsec_") or not 24 <= size <= 64:
        raise ValueError("a secret is whsec_ followed by 24 to 64 bytes in base64")
    return value


class Cap(Request):
    """An upper limit: absolute (`max`) or a fraction of the original (`max_ratio`), exactly one of them."""

    max: Annotated[float, Field(gt=0), AfterValidator(_at_least_one)] | None = None
    max_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Cap:
        if self.max is not None and self.max_ratio is not None:
            raise ValueError("give either max or max_ratio, not both")
        if self.max is None and self.max_ratio is None:
            raise ValueError("give max (an absolute number) or max_ratio (a fraction of the original)")
        return self


class MemoryCap(Cap):
    """A cap in bytes (float32): weights, peak activations at batch 1, or their total."""

    kind: Literal["weights", "activations", "total"] = "total"


class LatencyCap(Cap):
    """A cap in milliseconds: ONNX Runtime on the worker's CPU, one thread, batch 1, the median run."""

    max: Annotated[float, Field(gt=0)] | None = None


class Budget(Request):
    """At least one cap; every cap must hold. `size` is in bytes, of the delivered weights file."""

    params: Cap | None = None
    flops: Cap | None = None
    macs: Cap | None = None
    memory: MemoryCap | None = None
    size: Cap | None = None
    latency_ms: LatencyCap | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Budget:
        if not self.model_fields_set or all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError('a budget needs at least one cap, for example {"flops": {"max_ratio": 0.4}}')
        return self


class Method(Request):
    """One method of the chain. Its own options are checked against the schema in the workers' catalogue."""

    model_config = ConfigDict(extra="allow")
    type: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)] = "auto"


class Recovery(Request):
    """Training after compression: on labels and the original's outputs or, with an unlabelled dataset, on the original's
    outputs alone. Left out, the engine chooses."""

    epochs: Annotated[int, Field(ge=0, le=1000)] | None = None
    learning_rate: Annotated[float, Field(ge=1e-9, le=10)] | None = None
    batch_size: Annotated[int, Field(ge=2, le=8192)] | None = None
    distill: Annotated[bool | None, Field(description="Learn from the original's outputs, too.")] = None
    optimizer: Literal["sgd", "adamw"] | None = None
    schedule: Literal["cosine", "one_cycle"] | None = None
    weight_decay: Annotated[
        Annotated[float, Field(ge=0, le=1)] | None, Field(description="Of kernels and matrices only.")
    ] = None
    label_smoothing: Annotated[float, Field(ge=0, le=0.9)] | None = None
    ema_decay: Annotated[
        Annotated[float, Field(ge=0, le=0.99999)] | None,
        Field(description="Deliver a moving average of the weights; 0 for none."),
    ] = None
    gradient_clip: Annotated[
        Annotated[float, Field(ge=1e-6, le=1e6)] | None, Field(description="Largest norm of the whole gradient.")
    ] = None
    cutout: Annotated[
        Annotated[float, Field(ge=0, le=0.9)] | None,
        Field(description="Side of the square that is blanked, as a share of the image's shorter side."),
    ] = None
    mixup: Annotated[
        Annotated[float, Field(ge=0, le=10)] | None, Field(description="α of the Beta distribution; 0 for none.")
    ] = None
    patience: Annotated[
        Annotated[int, Field(ge=1, le=1000)] | None,
        Field(description="Epochs without a better validation after which training stops with its best epoch."),
    ] = None
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    layout: Annotated[
        Literal["auto", "contiguous", "channels_last"] | None,
        Field(description="Of images and kernels in memory; with the precision it decides how training rounds."),
    ] = None
    compile: Annotated[
        bool | None, Field(description="Train with torch.compile, where the worker has what it needs; off by default.")
    ] = None
    threads: Annotated[
        Annotated[int, Field(ge=1, le=1024)] | None,
        Field(description="On a CPU, instead of the count that is measured to be fastest."),
    ] = None
    processes: Annotated[
        Annotated[int, Field(ge=1, le=16)] | None,
        Field(description="How many train together: by default one for each GPU that the job has, and one on a CPU."),
    ] = None

    @property
    def trains(self) -> bool:
        """Whether training is asked for, not merely left to the engine or switched off."""
        return self.epochs != 0 and any(value is not None for value in self.model_dump().values())

    @property
    def needs_labels(self) -> bool:
        """Whether something is asked for that means nothing without labels."""
        return self.epochs != 0 and (bool(self.label_smoothing) or self.distill is False)


class Limits(Request):
    max_runtime_s: Annotated[int, Field(ge=1, le=7 * 24 * 3600)] = 7200


class Accuracy(Request):
    """A floor: the delivered network may lose at most `max_drop` (a fraction, 0.01 = one point) on the test split.

    With `on_unmet: best_effort` the budget is relaxed until the loss on the validation split is small enough.
    """

    max_drop: Annotated[float, Field(ge=0, le=1)]
    metric: Literal["top1"] = "top1"


LayerName = Annotated[str, StringConstraints(min_length=1, max_length=500)]


class LayerWidth(Request):
    """How many output channels a layer is to have. `GET /v1/plans/{id}` shows a layer's name, width, `min` and `max`."""

    name: LayerName
    out: Annotated[int, Field(ge=1, lt=2**31)]


class WidthPlan(Request):
    """Widths that are taken as they are; layers not named are planned as usual, and every cap still holds."""

    layers: Annotated[list[LayerWidth], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_layer_once(self) -> WidthPlan:
        widths: dict[str, int] = {}
        for layer in self.layers:
            if widths.setdefault(layer.name, layer.out) != layer.out:
                raise ValueError(f"the layer {layer.name!r} is given two widths, {widths[layer.name]} and {layer.out}")
        return self


class Encoding(Request):
    """How weights share values, and how `model.pwt` stores them; every artifact then has the shared values.

    With a cap on `size` and the output `pwt`, the bits of every layer are chosen so that the file lands under the cap.
    """

    quantizer: Annotated[
        Literal["none", "cws", "pws", "uq", "ecsq"],
        Field(description="Clustering, probabilistic, uniform, entropy-constrained weight sharing."),
    ] = "none"
    levels: Annotated[
        Annotated[int, Field(ge=1, le=256)] | None,
        Field(description="Most shared values of a layer: 32 unless given, or up to 256 under a cap on size."),
    ] = None
    bits: Annotated[
        Annotated[int, Field(ge=1, le=8)] | None, Field(description="The same as a power of two; give one of them.")
    ] = None
    prune: Annotated[
        float, Field(ge=0, lt=100, description="Percentage of each layer's weights that become zero first.")
    ] = 0.0
    unified: Annotated[bool, Field(description="One codebook for all convolutions, one for all matrices.")] = False
    format: Literal["auto", "hac", "shac", "im", "csc", "ans"] = "auto"
    epochs: Annotated[
        Annotated[int, Field(ge=0, le=1000)] | None,
        Field(description="Of training the shared values; by default a short run where there are images."),
    ] = None

    @model_validator(mode="after")
    def _consistent(self) -> Encoding:
        if self.levels is not None and self.bits is not None:
            raise ValueError("give either levels or bits, not both")
        if self.quantizer == "none":
            asked = [name for name in ("levels", "bits", "prune", "unified", "epochs") if getattr(self, name)]
            if asked:
                raise ValueError(f"{asked[0]} needs a quantizer: cws, pws, uq or ecsq")
            if self.format not in ("auto", "csc"):
                raise ValueError(f"{self.format} stores shared values, so it needs a quantizer: cws, pws, uq or ecsq")
        return self

    @property
    def shared_values(self) -> int | None:
        return 2**self.bits if self.bits is not None else self.levels


class OnnxOptions(Request):
    """How `model.onnx` is written."""

    opset: Annotated[int, Field(ge=13, le=26, description="Of the standard operators.")] = 26


OutputName = Literal["onnx", "onnx-int8", "pt2", "safetensors", "pwt", "report"]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\-/]{1,63}$")]
LabelValue = Annotated[str, StringConstraints(max_length=255)]
DisplayName = Annotated[str, StringConstraints(min_length=1, max_length=200)]


WebhookEvent = Literal["job.queued", "job.running", "job.cancelling", "job.succeeded", "job.failed", "job.cancelled"]
WEBHOOK_EVENTS: tuple[WebhookEvent, ...] = get_args(WebhookEvent)
FINAL_EVENTS: tuple[WebhookEvent, ...] = ("job.succeeded", "job.failed", "job.cancelled")
WebhookEvents = Annotated[list[WebhookEvent], Field(min_length=1, max_length=len(WEBHOOK_EVENTS))]
WebhookUrl = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
WebhookSecret = Annotated[str, StringConstraints(max_length=100), AfterValidator(_signing_secret)]


class JobWebhook(Request):
    """Where to tell of this job. Without a `secret` one is made; `GET /v1/webhook_endpoints?job=…` names its endpoint."""

    url: WebhookUrl
    events: WebhookEvents = Field(default_factory=lambda: list(FINAL_EVENTS))
    secret: Annotated[WebhookSecret | None, Field(description="Signs the messages; never shown with the job.")] = None


class JobOptions(Request):
    """A job body without its model: the `spec` part of a multipart request."""

    name: DisplayName | None = None
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = Field(default_factory=dict)
    budget: Budget
    accuracy: Accuracy | None = None
    methods: Annotated[
        list[Method],
        Field(
            min_length=1,
            max_length=2,
            description="One method, or a chain of one that removes channels and one that rewrites layers.",
        ),
    ] = Field(default_factory=lambda: [Method()])
    plan: WidthPlan | None = None
    recovery: Recovery = Field(default_factory=Recovery)
    encoding: Encoding = Field(default_factory=Encoding)
    outputs: Annotated[list[OutputName], Field(min_length=1)] = Field(
        default_factory=lambda: ["onnx", "safetensors", "report"]
    )
    onnx: OnnxOptions | None = None
    dataset: Annotated[str, StringConstraints(pattern=r"^ds_[0-9A-Z]{26}$")] | None = None
    device: Literal["auto", "cpu", "gpu"] = "auto"
    priority: Annotated[
        int,
        Field(ge=0, le=100, description="Smaller goes first. The least is the default: a job can only be put back."),
    ] = 0
    limits: Limits = Field(default_factory=Limits)
    on_unmet: Literal["fail", "best_effort"] = "fail"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    webhook: JobWebhook | None = None

    @property
    def label_users(self) -> list[str]:
        """The fields that need a labelled dataset, as this request fills them in."""
        return [*(["accuracy"] if self.accuracy else []), *(["recovery"] if self.recovery.needs_labels else [])]


class JobRequest(JobOptions):
    """The body of `POST /v1/jobs` and of `POST /v1/plans`."""

    model: Annotated[str, StringConstraints(pattern=r"^mdl_[0-9A-Z]{26}$")]


class Conversion(Request):
    """What is to be done to encoded images. Without it nothing is: all must have one size and the same channels."""

    size: Annotated[
        list[Annotated[int, Field(ge=1, le=4096)]] | None,
        Field(min_length=2, max_length=2, description="[height, width]: scaled to cover it, the middle kept."),
    ] = None
    color: Annotated[Literal["grey", "rgb"] | None, Field(description="One channel or three for every image.")] = None

    @model_validator(mode="after")
    def _not_empty(self) -> Conversion:
        if self.size is None and self.color is None:
            raise ValueError("give size ([height, width]), color (grey or rgb), or both; or leave convert out")
        return self


class Normalization(Request):
    """Per-channel mean and standard deviation, applied after division by `scale`."""

    mean: Annotated[list[Annotated[float, Field(ge=-1e6, le=1e6)]], Field(min_length=1, max_length=16)]
    std: Annotated[list[Annotated[float, Field(ge=1e-6, le=1e6)]], Field(min_length=1, max_length=16)]

    @model_validator(mode="after")
    def _same_length(self) -> Normalization:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std has {len(self.std)}; they must match")
        return self
