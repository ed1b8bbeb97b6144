"""The tasks that vanished runs of official endpoints had taken."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("endpoints", sa.Column("run_left", sa.Double(), nullable=True))
    op.add_column("deliveries", sa.Column("taken_at", sa.Double(), nullable=True))
    op.add_column("deliveries", sa.Column("lost_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("deliveries", "lost_at")
    op.drop_column("deliveries", "taken_at")
    op.drop_column("endpoints", "run_left")
