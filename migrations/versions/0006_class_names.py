"""What a dataset's classes are called, how many examples each has, and what is done to its images."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COLUMNS = ("class_names", "class_counts", "convert")


def upgrade() -> None:
    with op.batch_alter_table("datasets") as table:
        for name in COLUMNS:
            table.add_column(sa.Column(name, sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("datasets") as table:
        for name in reversed(COLUMNS):
            table.drop_column(name)
