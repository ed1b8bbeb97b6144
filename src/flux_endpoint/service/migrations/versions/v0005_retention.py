"""For the removal of old records: the last use of each function, and an index of its tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("functions", sa.Column("used_at", sa.Double(), nullable=True))
    op.create_index("ix_tasks_function_id", "tasks", ["function_id"])


def downgrade() -> None:
    op.drop_index("ix_tasks_function_id", table_name="tasks")
    op.drop_column("functions", "used_at")
