"""User endpoints of multi-user endpoints, what they were given, failures that a result replaces."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_OF_ENDPOINTS: tuple[tuple[str, sa.types.TypeEngine[Any]], ...] = (
    ("parent_id", sa.String(length=36)),
    ("config_hash", sa.String(length=64)),
    ("user_config", sa.JSON(none_as_null=True)),
    ("user_runtime", sa.JSON(none_as_null=True)),
    ("run", sa.Double()),
    ("run_seen", sa.Double()),
    ("run_ends", sa.Double()),
    ("empty_before", sa.Double()),
)


def upgrade() -> None:
    for name, kind in _OF_ENDPOINTS:
        op.add_column("endpoints", sa.Column(name, kind, nullable=True))
    op.create_index(
        "uq_endpoints_parent_id_owner_id_config_hash",
        "endpoints",
        ["parent_id", "owner_id", "config_hash"],
        unique=True,
    )
    op.add_column("tasks", sa.Column("presumed", sa.Boolean(), nullable=True))
    op.create_table(
        "deliveries",
        sa.Column("task_id", sa.String(length=36), nullable=False),
        sa.Column("endpoint_id", sa.String(length=36), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("claimed_at", sa.Double(), nullable=True),
        sa.Column("released_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["endpoints.id"], name=op.f("fk_deliveries_endpoint_id_endpoints")
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("fk_deliveries_task_id_tasks")
        ),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_deliveries")),
    )
    op.create_index(
        "ix_deliveries_endpoint_id_claimed_at_task_id",
        "deliveries",
        ["endpoint_id", "claimed_at", "task_id"],
        unique=False,
    )


def downgrade() -> None:
    op.drop_index("ix_deliveries_endpoint_id_claimed_at_task_id", table_name="deliveries")
    op.drop_table("deliveries")
    op.drop_column("tasks", "presumed")
    op.drop_index("uq_endpoints_parent_id_owner_id_config_hash", table_name="endpoints")
    for name, _ in reversed(_OF_ENDPOINTS):
        op.drop_column("endpoints", name)
