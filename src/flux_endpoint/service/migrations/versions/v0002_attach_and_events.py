"""Tasks without a function that follow a job, and the events of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("submissions", sa.Column("attach_jobid", sa.String(length=20), nullable=True))
    with op.batch_alter_table("tasks") as tasks:
        tasks.alter_column("function_id", existing_type=sa.String(length=36), nullable=True)
    op.create_table(
        "task_events",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task_id", sa.String(length=36), nullable=False),
        sa.Column("jobid", sa.String(length=20), nullable=True),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("timestamp", sa.Double(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("fk_task_events_task_id_tasks")
        ),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_task_events")),
        sa.UniqueConstraint(
            "task_id", "name", "timestamp", name=op.f("uq_task_events_task_id_name_timestamp")
        ),
    )


def downgrade() -> None:
    op.drop_table("task_events")
    op.execute("DELETE FROM tasks WHERE function_id IS NULL")
    with op.batch_alter_table("tasks") as tasks:
        tasks.alter_column("function_id", existing_type=sa.String(length=36), nullable=False)
    op.drop_column("submissions", "attach_jobid")
