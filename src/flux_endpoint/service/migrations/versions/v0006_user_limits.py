"""Counts of each user's open tasks, for the limits of users. Tokens may expire."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COUNT = """
UPDATE users SET
  open_tasks = (
    SELECT count(*) FROM tasks JOIN submissions ON submissions.id = tasks.submission_id
    WHERE submissions.owner_id = users.id AND tasks.completed_at IS NULL),
  open_bytes = (
    SELECT coalesce(sum(length(tasks.payload)), 0)
    FROM tasks JOIN submissions ON submissions.id = tasks.submission_id
    WHERE submissions.owner_id = users.id AND tasks.completed_at IS NULL)
"""


def upgrade() -> None:
    op.add_column("tokens", sa.Column("expires_at", sa.Double(), nullable=True))
    for name in ("open_tasks", "open_bytes"):
        column = sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")
        op.add_column("users", column)
    op.execute(_COUNT)


def downgrade() -> None:
    op.drop_column("users", "open_bytes")
    op.drop_column("users", "open_tasks")
    op.drop_column("tokens", "expires_at")
