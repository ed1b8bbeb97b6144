"""Users that are disabled or have limits of their own; scopes, labels and last use of tokens."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_COLUMNS: dict[str, dict[str, sa.types.TypeEngine[Any]]] = {
    "users": {
        "disabled_at": sa.Double(),
        "limits": sa.JSON(none_as_null=True),
        "rate_left": sa.Double(),
        "rate_counted_at": sa.Double(),
    },
    "tokens": {
        "scopes": sa.JSON(none_as_null=True),
        "label": sa.String(256),
        "last_used_at": sa.Double(),
    },
}


def upgrade() -> None:
    for table, columns in _COLUMNS.items():
        for name, kind in columns.items():
            op.add_column(table, sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    """An earlier release would take a disabled user's tokens, and every token for everything."""
    for table, columns in _COLUMNS.items():
        for name in columns:
            op.drop_column(table, name)
