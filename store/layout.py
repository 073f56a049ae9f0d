"""Where objects lie: every key starts with its tenant, and what a job attempt writes carries the attempt.

The attempt in the key is what makes a stale worker harmless: it can write garbage beside a result, never into it.
"""

from __future__ import annotations


def model_key(tenant_id: str, model_id: str) -> str:
    return f"tenants/{tenant_id}/models/{model_id}/content"


def dataset_key(tenant_id: str, dataset_id: str) -> str:
    return f"tenants/{tenant_id}/datasets/{dataset_id}/content"


def job_prefix(tenant_id: str, job_id: str) -> str:
    """The folder of everything that any attempt of a job wrote."""
    return f"tenants/{tenant_id}/jobs/{job_id}"


def artifact_key(tenant_id: str, job_id: str, attempt: int, name: str) -> str:
    return f"{job_prefix(tenant_id, job_id)}/{attempt}/{name}"
