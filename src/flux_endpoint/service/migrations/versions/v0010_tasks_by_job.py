"""Finds the task of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Each task's job has one such event."""
    is_first = sa.text("name = 'submit'")
    op.create_index(
        "ix_task_events_jobid",
        "task_events",
        ["jobid"],
        sqlite_where=is_first,
        postgresql_where=is_first,
    )


def downgrade() -> None:
    """An earlier release searches all of a user's tasks."""
    op.drop_index("ix_task_events_jobid", "task_events")
