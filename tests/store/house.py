"""One database as clients and workers use it: short ways to put things in and to claim them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import update

from store import work
from store.claims import Claim, StoredArtifact
from store.contract import (
    DatasetInspection,
    ErrorCode,
    ErrorInfo,
    JobRequest,
    JobResult,
    Measured,
    ModelInspection,
    ModelProfile,
    PlanOutcome,
    WorkKind,
)
from store.database import Database
from store.datasets import DatasetRepository
from store.identifiers import new_id
from store.jobs import JobRepository
from store.layout import dataset_key, model_key
from store.models import ModelRepository
from store.plans import PlanRepository
from store.tables import LOCAL_TENANT, Dataset, Job, Plan, Work

OTHER_TENANT = "other"
WORKER = "host:1:job"
LEASE_S = 60.0
UNMET = ErrorInfo(code=ErrorCode.target_unmet, message="Reached 41 %.", details={"smallest": {"flops": 5}})
UNSAFE = ErrorInfo(code=ErrorCode.unsafe_model, message="It calls os.system.")
COSTS = {
    "params": 1000,
    "macs": 20000,
    "flops": 40000,
    "weight_bytes": 4000,
    "peak_activation_bytes": 8192,
    "memory_bytes": 12192,
}


class House:
    """One database, seen by clients of two tenants and by workers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database(url)

    def add_model(self, tenant_id: str = LOCAL_TENANT, *, ready: bool = True) -> str:
        id = new_id("mdl")
        with self.database.transaction() as session:
            ModelRepository(session, tenant_id).create(
                id=id,
                filename="net.th",
                name="net",
                object_key=model_key(tenant_id, id),
                size_bytes=12,
                sha256="ab" * 32,
                architecture="cifar_resnet20",
            )
        if ready:
            work.finish_model(self.database, self.claim(WorkKind.inspect_model, id=id), inspected_model())
        return id

    def add_dataset(self, tenant_id: str = LOCAL_TENANT, *, ready: bool = True) -> str:
        id = new_id("ds")
        with self.database.transaction() as session:
            DatasetRepository(session, tenant_id).create(
                id=id,
                filename="digits.npz",
                name="digits",
                object_key=dataset_key(tenant_id, id),
                size_bytes=34,
                sha256="cd" * 32,
                normalization={"mean": [0.5], "std": [0.25]},
                scale=16.0,
            )
        if ready:
            work.finish_dataset(self.database, self.claim(WorkKind.inspect_dataset, id=id), inspected_dataset())
        return id

    def add_job(self, model: str, tenant_id: str = LOCAL_TENANT, **fields: Any) -> str:
        with self.database.transaction() as session:
            return JobRepository(session, tenant_id).create(job_request(model, **fields)).id

    def add_plan(self, model: str, tenant_id: str = LOCAL_TENANT, **fields: Any) -> str:
        with self.database.transaction() as session:
            return PlanRepository(session, tenant_id).create(job_request(model, **fields)).id

    def plan(self, id: str, tenant_id: str = LOCAL_TENANT) -> Plan:
        with self.database.read() as session:
            return PlanRepository(session, tenant_id).get(id)

    def dataset(self, id: str) -> Dataset:
        with self.database.read() as session:
            return DatasetRepository(session, LOCAL_TENANT).get(id)

    def claim(self, *kinds: WorkKind, id: str | None = None, **options: Any) -> Claim:
        """Claim the next thing; it must be there, and be `id` if that is given."""
        options = {"worker_id": WORKER, "queues": {"cpu"}, "lease_s": LEASE_S, **options}
        claim = work.claim(self.database, kinds=kinds or set(WorkKind), **options)
        assert claim is not None
        assert id is None or claim.id == id
        return claim

    def job(self, id: str, tenant_id: str = LOCAL_TENANT) -> Job:
        with self.database.read() as session:
            return JobRepository(session, tenant_id).get(id)

    def events(self, id: str) -> list[tuple[int, str]]:
        with self.database.read() as session:
            page = JobRepository(session, LOCAL_TENANT).events(id, limit=100)
            return [(event.seq, event.type) for event in page.rows]

    def cancel(self, id: str) -> Job:
        with self.database.transaction() as session:
            return JobRepository(session, LOCAL_TENANT).request_cancel(id)


def job_request(model: str, **fields: Any) -> JobRequest:
    return JobRequest.model_validate({"model": model, "budget": {"flops": {"max_ratio": 0.4}}, **fields})


def inspected_model() -> ModelInspection:
    return ModelInspection(
        format="state_dict",
        architecture="cifar_resnet20",
        architecture_args={"num_classes": 10},
        input_shape=[3, 32, 32],
        profile=ModelProfile(**COSTS, layers=[]),
    )


def inspected_dataset() -> DatasetInspection:
    return DatasetInspection(
        format="npz",
        classes=10,
        class_names=list("0123456789"),
        splits={"train": 80, "val": 10, "test": 10},
        class_counts={
            "train": {"min": 8, "max": 8, "counts": [8] * 10},
            "val": {"min": 1, "max": 1, "counts": [1] * 10},
            "test": {"min": 1, "max": 1, "counts": [1] * 10},
        },
        image_shape=[1, 8, 8],
        mean=[0.3],
        std=[0.4],
    )


def job_result(*, met: bool = True) -> JobResult:
    measured = Measured(**COSTS, size_bytes=5000)
    return JobResult(
        met=met,
        constraints=[],
        baseline=measured,
        compressed=measured,
        equivalence=None,
        layers=[],
        frozen=[],
        artifacts=[],
        provenance={"seed": 0},
    )


def plan_outcome() -> PlanOutcome:
    layer = {"name": "conv1", "before": {"out": 16}, "after": {"out": 9}, "min": 4, "max": 16, "group": "conv1"}
    return PlanOutcome.model_validate(
        {
            "feasible": True,
            "predicted": COSTS,
            "baseline": COSTS,
            "constraints": [],
            "layers": [layer],
            "frozen": [],
        }
    )


def artifact(claim: Claim, name: str = "model.onnx") -> StoredArtifact:
    return StoredArtifact(name, "application/onnx", 5, "ef" * 32, claim.object_key(name))


def nothing_claimable(house: House, **options: Any) -> bool:
    options = {"worker_id": "w", "kinds": set(WorkKind), "queues": {"cpu", "gpu"}, "lease_s": 1.0, **options}
    return work.claim(house.database, **options) is None


def let_the_lease_expire(house: House, id: str) -> None:
    with house.database.transaction() as session:
        past = house.database.now(session) - timedelta(seconds=1)
        session.execute(update(Work).where(Work.id == id).values(lease_expires_at=past))


def lose(house: House, claim: Claim) -> None:
    let_the_lease_expire(house, claim.id)
    assert work.expire_leases(house.database, backoff_s=0) == 1
