"""Users and their bearer tokens, of which only the SHA-256 is kept."""

import hashlib
import secrets
import time
from dataclasses import dataclass
from uuid import uuid4

import sqlalchemy as sa

from flux_endpoint.service.store.tables import tokens, users

#: So many characters of a token's hash name it to a person.
TOKEN_ID_LENGTH = 12


@dataclass(frozen=True)
class User:
    """Who a request comes from."""

    id: str
    name: str

    @property
    def email(self) -> str | None:
        """The name, if that is an address."""
        return self.name if "@" in self.name else None

    @property
    def identity(self) -> dict[str, str | None]:
        """The user as an element of an identity set; maps to local accounts read `username`."""
        return {"sub": self.id, "username": self.name, "name": self.name, "email": self.email}


@dataclass(frozen=True)
class Token:
    """A token as it is listed: never the token itself."""

    id: str
    user: str
    created_at: float
    #: `None`: never.
    expires_at: float | None = None


def user_by_token(connection: sa.Connection, token: str) -> User | None:
    """Return who owns `token`, or `None` if nobody does."""
    query = (
        sa.select(users.c.id, users.c.name)
        .join_from(tokens, users)
        .where(tokens.c.hash == _hash(token), _is_valid(time.time()))
    )
    row = connection.execute(query).one_or_none()
    return User(row.id, row.name) if row else None


def expired_at(connection: sa.Connection, token: str) -> float | None:
    """Return when `token` has expired; `None` if it has not, or is unknown."""
    query = sa.select(tokens.c.expires_at).where(
        tokens.c.hash == _hash(token), ~_is_valid(time.time())
    )
    expires_at: float | None = connection.scalar(query)
    return expires_at


def _is_valid(now: float) -> sa.ColumnElement[bool]:
    return tokens.c.expires_at.is_(None) | (tokens.c.expires_at > now)


def create_token(connection: sa.Connection, user_name: str, expires_at: float | None = None) -> str:
    """Return a new token of `user_name`, who is created if missing.

    Args:
        connection: of a transaction that writes.
        user_name: whose it is.
        expires_at: from when on it is not valid (seconds since the epoch); `None`: always.
    """
    user_id = connection.scalar(sa.select(users.c.id).where(users.c.name == user_name))
    if user_id is None:
        user_id = str(uuid4())
        connection.execute(
            sa.insert(users).values(id=user_id, name=user_name, created_at=time.time())
        )
    token = secrets.token_urlsafe(32)
    connection.execute(
        sa.insert(tokens).values(
            hash=_hash(token), user_id=user_id, created_at=time.time(), expires_at=expires_at
        )
    )
    return token


def revoke_token(connection: sa.Connection, token_or_id: str) -> bool:
    """Delete the token given itself or by its id; return whether there was one."""
    by_id = sa.func.substr(tokens.c.hash, 1, TOKEN_ID_LENGTH) == token_or_id
    matches = (tokens.c.hash == _hash(token_or_id)) | by_id
    return connection.execute(sa.delete(tokens).where(matches)).rowcount > 0


def list_tokens(connection: sa.Connection) -> list[Token]:
    """Return all tokens, the oldest first."""
    query = (
        sa.select(tokens.c.hash, users.c.name, tokens.c.created_at, tokens.c.expires_at)
        .join_from(tokens, users)
        .order_by(tokens.c.created_at)
    )
    return [
        Token(row.hash[:TOKEN_ID_LENGTH], row.name, row.created_at, row.expires_at)
        for row in connection.execute(query)
    ]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
