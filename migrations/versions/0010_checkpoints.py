"""Where a job's checkpoint lies, and which one it went on from."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

COLUMNS = {
    "checkpoint_key": sa.Text(),
    "checkpoint_size": sa.BigInteger(),
    "checkpoint_sha256": sa.String(length=64),
    "checkpoint_attempt": sa.Integer(),
    "checkpoint_at": sa.DateTime(timezone=True),
    "resumed_from": sa.JSON(none_as_null=True),
}


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        for name, type in COLUMNS.items():
            jobs.add_column(sa.Column(name, type, nullable=True))
        jobs.create_index(op.f("ix_jobs_checkpoint_key"), ["checkpoint_key"])


def downgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_index(op.f("ix_jobs_checkpoint_key"))
        for name in reversed(COLUMNS):
            jobs.drop_column(name)
