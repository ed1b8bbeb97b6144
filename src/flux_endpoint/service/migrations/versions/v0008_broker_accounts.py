"""The key of accounts at the broker, and which token registered an endpoint."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the key, once for all services on this database."""
    table = op.create_table(
        "secrets",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )
    op.bulk_insert(table, [{"name": "broker-accounts", "value": secrets.token_hex(32)}])
    op.add_column("endpoints", sa.Column("token_id", sa.String(12)))


def downgrade() -> None:
    """Forget both: passwords of accounts that were handed out are wrong then."""
    op.drop_column("endpoints", "token_id")
    op.drop_table("secrets")
