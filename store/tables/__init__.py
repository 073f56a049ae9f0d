"""The tables. A job's row is the truth about it; `work` is what a worker may claim; nothing else holds state.

Every row of a tenant says so, or hangs on one that does. `work.id` is the id of its subject (a job, a plan, a
model or a dataset). Ids of models and datasets in `jobs` and `plans` are kept after those are deleted, so they are not
foreign keys.
"""

from store.tables.base import Base, DeliveryStatus, EndpointStatus, Scope, WorkState
from store.tables.jobs import Artifact, Job, JobEvent, JobLabel, Plan
from store.tables.tenants import LOCAL_TENANT, ApiKey, IdempotencyKey, Tenant
from store.tables.uploads import Dataset, Model, Upload, UploadedFile
from store.tables.webhooks import WebhookDelivery, WebhookEndpoint
from store.tables.work import GpuRun, Tally, Work, Worker

__all__ = [
    "LOCAL_TENANT",
    "ApiKey",
    "Artifact",
    "Base",
    "Dataset",
    "DeliveryStatus",
    "EndpointStatus",
    "GpuRun",
    "IdempotencyKey",
    "Job",
    "JobEvent",
    "JobLabel",
    "Model",
    "Plan",
    "Scope",
    "Tally",
    "Tenant",
    "Upload",
    "UploadedFile",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Work",
    "WorkState",
    "Worker",
]
