"""Labels with their job's tenant and status, so that a list filtered by both reads only what it shows."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("job_labels") as labels:
        labels.add_column(sa.Column("tenant_id", sa.String(length=32), nullable=True))
        labels.add_column(sa.Column("status", sa.String(length=16), nullable=True))
    op.execute(
        "UPDATE job_labels SET tenant_id = (SELECT tenant_id FROM jobs WHERE jobs.id = job_labels.job_id), "
        "status = (SELECT status FROM jobs WHERE jobs.id = job_labels.job_id)"
    )
    with op.batch_alter_table("job_labels") as labels:
        labels.alter_column("tenant_id", existing_type=sa.String(length=32), nullable=False)
        labels.alter_column("status", existing_type=sa.String(length=16), nullable=False)
        labels.drop_index(op.f("ix_job_labels_key_value_job_id"))
        labels.create_index(op.f("ix_job_labels_tenant_id_key_value_job_id"), ["tenant_id", "key", "value", "job_id"])
        labels.create_index(
            op.f("ix_job_labels_tenant_id_key_value_status_job_id"), ["tenant_id", "key", "value", "status", "job_id"]
        )


def downgrade() -> None:
    with op.batch_alter_table("job_labels") as labels:
        labels.drop_index(op.f("ix_job_labels_tenant_id_key_value_status_job_id"))
        labels.drop_index(op.f("ix_job_labels_tenant_id_key_value_job_id"))
        labels.drop_column("status")
        labels.drop_column("tenant_id")
        labels.create_index(op.f("ix_job_labels_key_value_job_id"), ["key", "value", "job_id"])
