"""Accounts at the broker: their names and their validity.

Accounts are not stored. An account's name contains the id of its user or endpoint, and the id of a
token. The account is valid as long as that token is, and the endpoint is not deleted.
"""

import re
import time
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from flux_endpoint.service.store.tables import endpoints, secrets, task_groups, tokens, users
from flux_endpoint.service.store.users import TOKEN_ID_LENGTH, is_valid

#: Name of the row in `secrets` with the key from which all passwords are derived.
ACCOUNT_KEY = "broker-accounts"

UUID_PATTERN = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NAME = re.compile(f"([ue])-({UUID_PATTERN})-([0-9a-f]{{{TOKEN_ID_LENGTH}}})")


class AccountKind(StrEnum):
    """The kind of an account's owner; the first character of the account's name."""

    USER = "u"
    ENDPOINT = "e"


@dataclass(frozen=True)
class Account:
    """An account at the broker.

    Attributes:
        kind: whether the account belongs to a user or to an endpoint.
        owner_id: id of that user or endpoint.
        token_id: id of the token with which the account was requested.
    """

    kind: AccountKind
    owner_id: str
    token_id: str

    @property
    def name(self) -> str:
        """The user name at the broker."""
        return f"{self.kind}-{self.owner_id}-{self.token_id}"


def parse_account(name: str) -> Account | None:
    """Return the account with a name; `None` if no account of the service can have it."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    kind, owner_id, token_id = parts.groups()
    return Account(AccountKind(kind), owner_id, token_id)


def account_key(connection: sa.Connection) -> bytes:
    """Return the key from which passwords are derived; a migration has created it."""
    text: str = connection.execute(
        sa.select(secrets.c.value).where(secrets.c.name == ACCOUNT_KEY)
    ).scalar_one()
    return bytes.fromhex(text)


def is_alive(connection: sa.Connection, account: Account) -> bool:
    """Return whether an account's token is valid, its user not disabled, its endpoint not deleted.

    Args:
        connection: a transaction.
        account: the account.
    """
    token = (sa.func.substr(tokens.c.hash, 1, TOKEN_ID_LENGTH) == account.token_id) & is_valid(
        time.time()
    )
    if account.kind is AccountKind.USER:
        query = (
            sa.select(tokens.c.user_id)
            .join_from(tokens, users)
            .where(tokens.c.user_id == account.owner_id, tokens.c.endpoint_id.is_(None), token)
        )
    else:
        # A user endpoint belongs to the user who submits, but its credentials belong to the owner
        # of its multi-user endpoint.
        parent = endpoints.alias("parent")
        is_there = endpoints.c.parent_id.is_(None) | (
            parent.c.id.is_not(None) & parent.c.deleted_at.is_(None)
        )
        registered = sa.func.coalesce(parent.c.id, endpoints.c.id)
        runs_it = sa.func.coalesce(parent.c.owner_id, endpoints.c.owner_id)
        query = (
            sa.select(tokens.c.user_id)
            .select_from(endpoints)
            .outerjoin(parent, parent.c.id == endpoints.c.parent_id)
            .join(tokens, tokens.c.user_id == runs_it)
            .join(users, users.c.id == tokens.c.user_id)
            .where(endpoints.c.id == account.owner_id, endpoints.c.deleted_at.is_(None))
            .where(is_there, token)
            # A token of the owner, or one for this endpoint.
            .where(tokens.c.endpoint_id.is_(None) | (tokens.c.endpoint_id == registered))
        )
    query = query.where(users.c.disabled_at.is_(None))
    return connection.execute(query.limit(1)).first() is not None


def owns_group(connection: sa.Connection, user_id: str, group_id: str) -> bool:
    """Return whether a user owns a task group."""
    query = sa.select(task_groups.c.owner_id).where(task_groups.c.id == group_id)
    return connection.scalar(query) == user_id
