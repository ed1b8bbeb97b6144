"""The printed output of tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "task_output",
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("stdout", sa.LargeBinary(), nullable=False),
        sa.Column("stderr", sa.LargeBinary(), nullable=False),
        sa.Column("stdout_dropped", sa.BigInteger(), nullable=False),
        sa.Column("stderr_dropped", sa.BigInteger(), nullable=False),
        # An earlier release, beside this one, deletes tasks and knows nothing of their output.
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name="fk_task_output_task_id_tasks", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", name="pk_task_output"),
    )


def downgrade() -> None:
    op.drop_table("task_output")
