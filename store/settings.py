"""Settings from `PENNYWEIGHT_*` environment variables: one URL per part, sensible defaults for one machine."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from store.webhook_urls import WebhookPolicy

MIB = 2**20
GIB = 2**30


class Settings(BaseSettings):
    """What can be configured. Lists are comma-separated in the environment; times are in seconds."""

    model_config = SettingsConfigDict(env_prefix="PENNYWEIGHT_", extra="ignore", validate_default=True)

    data_dir: Path = Path("data")
    """The folder of the embedded database and objects; made absolute when read."""
    database_url: str | None = None
    """SQLAlchemy URL; unset means SQLite under `data_dir`."""
    storage_url: str | None = None
    """`file:///…`, or `s3://bucket/prefix?endpoint=https://…`; unset means `objects/` under `data_dir`."""
    storage_public_url: str | None = None
    """Where clients reach the same S3 store: they then send and fetch files there directly. Unset: everything passes us."""
    queue_url: str | None = None
    """`redis://…`: how the API wakes workers elsewhere, through Celery. Unset: workers look into the database by themselves."""

    host: str = "127.0.0.1"
    """Where the API listens; anywhere but on loopback it asks for API keys."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """The port of the API; 0 takes a free one."""
    allowed_hosts: Annotated[list[str], NoDecode] = Field(default_factory=list)
    """Host header values accepted beside loopback names, without port."""
    allowed_origins: Annotated[list[str], NoDecode] = Field(default_factory=list)
    """Origins of other web pages that may call the API, for example `https://tools.example.org`."""
    require_keys: bool = False
    """Ask for an API key on loopback too; bound to any other address one is always needed."""
    metrics_token: SecretStr | None = None
    """The bearer token that `GET /metrics` asks for; without API keys none is needed."""
    metrics_open: bool = False
    """Show `/metrics` to whoever reaches the port although API keys are needed for everything else."""
    log_format: Literal["console", "json"] = "console"
    """How log lines look: for people, or one JSON object each."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged at all."""
    log_polls: bool = False
    """Log every request, those too that only read and go well: polls and health checks are most of the traffic."""
    tracing: bool = False
    """Send OpenTelemetry traces of requests and work to where the standard `OTEL_EXPORTER_OTLP_*` variables say."""
    max_upload_bytes: Annotated[int, Field(ge=1)] = 4 * GIB
    """The largest file that is taken."""
    upload_part_bytes: Annotated[int, Field(ge=5 * MIB, le=GIB)] = 16 * MIB
    """Size of the parts of an upload in parts; larger ones are used where there would be more than a thousand."""
    upload_expires_s: Annotated[float, Field(gt=0)] = 24 * 3600
    """How long an upload in parts may take, interruptions included."""
    webhook_allow: Annotated[list[IPv4Network | IPv6Network], NoDecode] = Field(default_factory=list)
    """Networks (CIDR) that webhooks may reach although they are not public; there, http and any port are allowed too."""
    webhook_ports: Annotated[list[int], NoDecode] = Field(default_factory=lambda: [443])
    """Ports of public addresses that webhooks may go to."""
    rate_limit_per_minute: Annotated[int, Field(ge=0)] = 6000
    """Requests of one API key in each API process; 0 for any number."""
    quota_stored_bytes: Annotated[int | None, Field(ge=0)] = None
    """What one tenant may store: models, datasets, artifacts and announced uploads. Unset, here and below: any amount.
    `pennyweightd quotas set` gives a tenant limits of its own."""
    quota_active_jobs: Annotated[int | None, Field(ge=0)] = None
    """Jobs of one tenant that are queued or running at a time."""
    quota_gpu_seconds: Annotated[int | None, Field(ge=0)] = None
    """Seconds that one tenant's jobs may hold GPUs in 30 days, added up over GPUs, those for `device: auto` too."""
    max_scratch_bytes: Annotated[int, Field(ge=2**20)] = 32 * GIB
    """What one task may write to disk, its uploads included."""

    retain_artifacts_days: Annotated[float | None, Field(ge=0)] = None
    """How long artifacts are kept after their job has ended. Unset, as below: for ever."""
    retain_models_days: Annotated[float | None, Field(ge=0)] = None
    """How long a model is kept after its upload or the last job on it, whichever is later."""
    retain_datasets_days: Annotated[float | None, Field(ge=0)] = None
    """The same for a dataset."""
    retain_plans_days: Annotated[float | None, Field(ge=0)] = None
    """How long a plan is kept."""

    lease_s: Annotated[float, Field(gt=0)] = 45
    """How long a claim lives without a heartbeat, in database time."""
    heartbeat_s: Annotated[float, Field(gt=0)] = 10
    """How often a lease is renewed; at most half of what it lives."""
    sweep_s: Annotated[float, Field(gt=0, le=60)] = 5
    """How often a worker looks for expired leases and says that it is there; after 90 s of silence it counts as gone."""
    poll_s: Annotated[float, Field(gt=0)] = 1
    """How often an idle slot looks for work that nobody told it of."""
    worker_poll_s: Annotated[float, Field(gt=0)] = 15
    """The same for a slot that Celery wakes: this is for the time in which Celery cannot."""
    gpus_per_job: Annotated[int, Field(ge=1, le=64)] = 1
    """How many GPUs a job on a GPU has to itself; its training uses them all."""
    checkpoint_interval_s: Annotated[float, Field(gt=0)] = 120
    """How often a job keeps the state of its training: the most that a killed process costs."""
    checkpoint_grace_s: Annotated[float, Field(ge=0)] = 20
    """How long a stopping worker lets a training job write and store a checkpoint before it gives the job back."""
    stop_timeout_s: Annotated[float, Field(ge=0)] = 30
    """How long a stopping worker waits for its threads, which end their runners and give their work back; longer than
    `PENNYWEIGHT_CHECKPOINT_GRACE_S`."""

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("allowed_hosts", "allowed_origins", "webhook_allow", "webhook_ports", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _heartbeat_fits_lease(self) -> Self:
        if self.heartbeat_s * 2 > self.lease_s:
            raise ValueError(
                f"PENNYWEIGHT_HEARTBEAT_S ({self.heartbeat_s:g}) must be at most half of PENNYWEIGHT_LEASE_S "
                f"({self.lease_s:g}), so that one late heartbeat does not lose the lease"
            )
        return self

    @property
    def artifacts_kept(self) -> timedelta | None:
        return None if self.retain_artifacts_days is None else timedelta(days=self.retain_artifacts_days)

    @property
    def webhook_policy(self) -> WebhookPolicy:
        return WebhookPolicy(tuple(self.webhook_allow), tuple(self.webhook_ports))

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'pennyweight.db'}"

    @property
    def resolved_storage_url(self) -> str:
        return self.storage_url or (self.data_dir / "objects").as_uri()
