"""Plans, which are work of their own kind; how often work came back for reasons of the worker's own."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KINDS_BEFORE = "kind IN ('job', 'inspect_model', 'inspect_dataset')"
KINDS_AFTER = "kind IN ('job', 'plan', 'inspect_model', 'inspect_dataset')"


def upgrade() -> None:
    op.create_table(
        "plans",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.Column("model_id", sa.String(length=32), nullable=False),
        sa.Column("dataset_id", sa.String(length=32), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("request", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('planning', 'ready', 'failed')", name=op.f("ck_plans_status_known")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_plans_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
    )
    op.create_index(op.f("ix_plans_dataset_id"), "plans", ["dataset_id"])
    op.create_index(op.f("ix_plans_model_id"), "plans", ["model_id"])
    op.create_index(op.f("ix_plans_tenant_id_id"), "plans", ["tenant_id", "id"])

    with op.batch_alter_table("work") as work:
        # The default is for the rows that are there; the program says the number itself.
        work.add_column(sa.Column("troubles", sa.Integer(), nullable=False, server_default="0"))
        work.drop_constraint(op.f("ck_work_kind_known"), type_="check")
        work.create_check_constraint(op.f("ck_work_kind_known"), KINDS_AFTER)
    with op.batch_alter_table("work") as work:
        work.alter_column("troubles", existing_type=sa.Integer(), existing_nullable=False, server_default=None)


def downgrade() -> None:
    op.execute("DELETE FROM work WHERE kind = 'plan'")
    with op.batch_alter_table("work") as work:
        work.drop_constraint(op.f("ck_work_kind_known"), type_="check")
        work.create_check_constraint(op.f("ck_work_kind_known"), KINDS_BEFORE)
        work.drop_column("troubles")
    op.drop_table("plans")
