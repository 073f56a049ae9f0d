"""Quotas of a tenant's own, the device that a job runs on, and how long each tenant has held GPUs."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
GPU_RUNS = sa.table(
    "gpu_runs",
    sa.column("job_id", sa.String),
    sa.column("attempt", sa.Integer),
    sa.column("tenant_id", sa.String),
    sa.column("ended_at", MOMENT),
    sa.column("seconds", sa.Float),
)
JOBS = sa.table(
    "jobs",
    sa.column("id", sa.String),
    sa.column("attempt", sa.Integer),
    sa.column("tenant_id", sa.String),
    sa.column("device", sa.String),
    sa.column("started_at", MOMENT),
    sa.column("finished_at", MOMENT),
)


def upgrade() -> None:
    with op.batch_alter_table("tenants") as tenants:
        tenants.add_column(sa.Column("quotas", sa.JSON(none_as_null=True), nullable=True))
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("device", sa.String(length=16), nullable=True))
        jobs.add_column(sa.Column("gpus", sa.Integer(), nullable=True))
    op.create_table(
        "gpu_runs",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("ended_at", MOMENT, nullable=False),
        sa.Column("seconds", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_gpu_runs_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("pk_gpu_runs")),
    )
    op.create_index(op.f("ix_gpu_runs_tenant_id_ended_at"), "gpu_runs", ["tenant_id", "ended_at"])
    op.create_index(op.f("ix_gpu_runs_ended_at"), "gpu_runs", ["ended_at"])
    # Until now only jobs that asked for a GPU were known to have had one.
    op.execute(
        "UPDATE jobs SET device = 'gpu', gpus = 1 "
        "WHERE started_at IS NOT NULL AND id IN (SELECT id FROM work WHERE queue = 'gpu')"
    )
    ended = sa.select(JOBS).where(JOBS.c.device == "gpu", JOBS.c.finished_at.is_not(None))
    rows = [
        {
            "job_id": job.id,
            "attempt": job.attempt,
            "tenant_id": job.tenant_id,
            "ended_at": job.finished_at,
            "seconds": (job.finished_at - job.started_at).total_seconds(),
        }
        for job in op.get_bind().execute(ended)
    ]
    if rows:
        op.bulk_insert(GPU_RUNS, rows)


def downgrade() -> None:
    op.drop_index(op.f("ix_gpu_runs_ended_at"), table_name="gpu_runs")
    op.drop_index(op.f("ix_gpu_runs_tenant_id_ended_at"), table_name="gpu_runs")
    op.drop_table("gpu_runs")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("gpus")
        jobs.drop_column("device")
    with op.batch_alter_table("tenants") as tenants:
        tenants.drop_column("quotas")
