"""Tasks that wait for other tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dependents",
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("unmet", sa.Integer(), nullable=False),
        sa.Column("failed_need", sa.String(36), nullable=True),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_dependents_task_id_tasks"),
        sa.PrimaryKeyConstraint("task_id", name="pk_dependents"),
    )
    op.create_index("ix_dependents_unmet_task_id", "dependents", ["unmet", "task_id"])
    op.create_table(
        "dependencies",
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("needs_id", sa.String(36), nullable=False),
        sa.Column("is_value", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name="fk_dependencies_task_id_tasks"),
        sa.ForeignKeyConstraint(["needs_id"], ["tasks.id"], name="fk_dependencies_needs_id_tasks"),
        sa.PrimaryKeyConstraint("task_id", "position", name="pk_dependencies"),
    )
    op.create_index("ix_dependencies_needs_id", "dependencies", ["needs_id"])


def downgrade() -> None:
    """An earlier release would publish waiting tasks without what they need."""
    op.drop_table("dependencies")
    op.drop_table("dependents")
