"""API keys with a scope and an end."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

KNOWN = "scope IN ('read', 'write', 'admin')"


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as keys:
        # Keys that are there could do everything; new ones say what they may.
        keys.add_column(sa.Column("scope", sa.String(length=16), nullable=False, server_default="admin"))
        keys.add_column(sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("api_keys") as keys:
        keys.alter_column("scope", existing_type=sa.String(length=16), existing_nullable=False, server_default=None)
        keys.create_check_constraint(op.f("ck_api_keys_scope_known"), KNOWN)


def downgrade() -> None:
    with op.batch_alter_table("api_keys") as keys:
        keys.drop_constraint(op.f("ck_api_keys_scope_known"), type_="check")
        keys.drop_column("expires_at")
        keys.drop_column("scope")
