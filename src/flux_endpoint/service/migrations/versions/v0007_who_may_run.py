"""Tokens of endpoints, groups of users, and who may run tasks at an endpoint."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tokens", sa.Column("endpoint_id", sa.String(36), nullable=True))
    op.create_index("ix_tokens_endpoint_id", "tokens", ["endpoint_id"])
    op.create_table(
        "group_members",
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_group_members_user_id_users"),
        sa.PrimaryKeyConstraint("name", "user_id", name="pk_group_members"),
    )
    op.create_index("ix_group_members_user_id", "group_members", ["user_id"])
    op.add_column("endpoints", sa.Column("users", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("endpoints", sa.Column("groups", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("endpoints", "groups")
    op.drop_column("endpoints", "users")
    op.drop_table("group_members")
    # A release that does not know them would take them for their users' own.
    op.execute("DELETE FROM tokens WHERE endpoint_id IS NOT NULL")
    op.drop_index("ix_tokens_endpoint_id", "tokens")
    op.drop_column("tokens", "endpoint_id")
