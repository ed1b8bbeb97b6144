"""Options of calls, such as retries."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("submissions", sa.Column("run_options", sa.JSON(), nullable=True))


def downgrade() -> None:
    """An earlier release would run the tasks without their options."""
    op.drop_column("submissions", "run_options")
