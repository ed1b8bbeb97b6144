"""The cache of results."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cached_calls",
        sa.Column("owner_id", sa.String(36), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_cached_calls_owner_id_users"),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
            name="fk_cached_calls_task_id_tasks",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("owner_id", "key", name="pk_cached_calls"),
    )
    op.create_index("ix_cached_calls_task_id", "cached_calls", ["task_id"])
    op.create_index("ix_cached_calls_owner_id_task_id", "cached_calls", ["owner_id", "task_id"])


def downgrade() -> None:
    op.drop_table("cached_calls")
