"""Which kinds of queues get a task group's results."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Groups of before have queues that take one result a message."""
    op.add_column(
        "task_groups", sa.Column("plain", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.add_column(
        "task_groups", sa.Column("bundles", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def downgrade() -> None:
    """An earlier release publishes one result a message, whoever listens."""
    op.drop_column("task_groups", "bundles")
    op.drop_column("task_groups", "plain")
