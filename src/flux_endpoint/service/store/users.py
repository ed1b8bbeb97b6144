"""Users, their groups, and their bearer tokens, which are stored as SHA-256 hashes only."""

import hashlib
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import uuid4

import sqlalchemy as sa

from flux_endpoint.service.store.tables import group_members, tokens, users

#: Number of characters of a token's hash that are its id.
TOKEN_ID_LENGTH = 12

#: Maximum number of tokens of an endpoint; a new one replaces the oldest.
ENDPOINT_TOKENS = 4


@dataclass(frozen=True)
class User:
    """The user of a request.

    Attributes:
        id: a UUID.
        name: the user's name.
        endpoint_id: id of the endpoint that the request's token belongs to; `None`: it is a token
            of the user.
        token_id: id of the request's token; empty if there is no request.
    """

    id: str
    name: str
    endpoint_id: str | None = None
    token_id: str = ""

    @property
    def email(self) -> str | None:
        """The name, if it is an email address."""
        return self.name if "@" in self.name else None

    @property
    def identity(self) -> dict[str, str | None]:
        """The user as an element of an identity set; identity mappings read `username`."""
        return {"sub": self.id, "username": self.name, "name": self.name, "email": self.email}


@dataclass(frozen=True)
class Token:
    """A token's entry in a list, without the token itself. Times: seconds since the epoch."""

    id: str
    user: str
    created_at: float
    #: `None`: it never expires.
    expires_at: float | None = None
    #: The endpoint that it belongs to; `None`: it is a token of the user.
    endpoint_id: str | None = None


def user_by_token(connection: sa.Connection, token: str) -> User | None:
    """Return the user of a token; `None` if the token is unknown or expired."""
    return user_by_hash(connection, hash_of(token))


def user_by_hash(connection: sa.Connection, token_hash: str) -> User | None:
    """Return the user of the token with a hash; `None` if it is unknown or expired."""
    row = connection.execute(_BY_TOKEN, {"hash": token_hash, "now": time.time()}).one_or_none()
    if row is None:
        return None
    return User(row.id, row.name, row.endpoint_id, token_hash[:TOKEN_ID_LENGTH])


def expired_at(connection: sa.Connection, token: str) -> float | None:
    """Return when a token expired (seconds since the epoch); `None` if it is valid or unknown."""
    query = sa.select(tokens.c.expires_at).where(
        tokens.c.hash == hash_of(token), ~is_valid(time.time())
    )
    expires_at: float | None = connection.scalar(query)
    return expires_at


def is_valid(now: float | sa.BindParameter[float]) -> sa.ColumnElement[bool]:
    """Return the SQL condition that a token has not expired at `now` (seconds since the epoch)."""
    return tokens.c.expires_at.is_(None) | (tokens.c.expires_at > now)


_BY_TOKEN = (
    sa.select(users.c.id, users.c.name, tokens.c.endpoint_id)
    .join_from(tokens, users)
    .where(tokens.c.hash == sa.bindparam("hash"), is_valid(sa.bindparam("now")))
)


def create_token(connection: sa.Connection, user_name: str, expires_at: float | None = None) -> str:
    """Create a token for a user, who is created if missing; return the token.

    Args:
        connection: a transaction that writes.
        user_name: name of the user.
        expires_at: end of its validity (seconds since the epoch); `None`: it never expires.
    """
    user_id = user_id_of(connection, user_name)
    if user_id is None:
        user_id = str(uuid4())
        connection.execute(
            sa.insert(users).values(id=user_id, name=user_name, created_at=time.time())
        )
    return _new_token(connection, user_id, None, expires_at)


def create_endpoint_token(
    connection: sa.Connection, owner_id: str, endpoint_id: str, expires_at: float | None = None
) -> str:
    """Create a token for one endpoint and return it; the oldest ones are deleted.

    Args:
        connection: a transaction that writes.
        owner_id: id of the endpoint's owner.
        endpoint_id: the endpoint.
        expires_at: end of its validity (seconds since the epoch); `None`: it never expires.
    """
    newest = connection.scalars(
        sa.select(tokens.c.hash)
        .where(tokens.c.endpoint_id == endpoint_id)
        .order_by(tokens.c.created_at.desc())
        .limit(ENDPOINT_TOKENS - 1)
    ).all()
    revoke_endpoint_tokens(connection, [endpoint_id], keep=newest)
    return _new_token(connection, owner_id, endpoint_id, expires_at)


def revoke_endpoint_tokens(
    connection: sa.Connection, endpoint_ids: Iterable[str], *, keep: Iterable[str] = ()
) -> int:
    """Delete the tokens of endpoints; return their number.

    Args:
        connection: a transaction that writes.
        endpoint_ids: the endpoints.
        keep: hashes of tokens that are not deleted.
    """
    theirs = tokens.c.endpoint_id.in_(list(endpoint_ids)) & tokens.c.hash.not_in(list(keep))
    return connection.execute(sa.delete(tokens).where(theirs)).rowcount


def _new_token(
    connection: sa.Connection, user_id: str, endpoint_id: str | None, expires_at: float | None
) -> str:
    token = secrets.token_urlsafe(32)
    connection.execute(
        sa.insert(tokens).values(
            hash=hash_of(token),
            user_id=user_id,
            created_at=time.time(),
            expires_at=expires_at,
            endpoint_id=endpoint_id,
        )
    )
    return token


def user_id_of(connection: sa.Connection, name: str) -> str | None:
    """Return the id of the user with a name; `None` if there is none."""
    return connection.scalar(sa.select(users.c.id).where(users.c.name == name))


def all_names(connection: sa.Connection) -> set[str]:
    """Return the names of all users."""
    return set(connection.scalars(sa.select(users.c.name)))


def revoke_token(connection: sa.Connection, token_or_id: str) -> bool:
    """Delete a token; return whether it existed.

    Args:
        connection: a transaction that writes.
        token_or_id: the token or its id.
    """
    by_id = sa.func.substr(tokens.c.hash, 1, TOKEN_ID_LENGTH) == token_or_id
    matches = (tokens.c.hash == hash_of(token_or_id)) | by_id
    return connection.execute(sa.delete(tokens).where(matches)).rowcount > 0


def list_tokens(connection: sa.Connection) -> list[Token]:
    """Return all tokens, oldest first."""
    query = (
        sa.select(
            tokens.c.hash,
            users.c.name,
            tokens.c.created_at,
            tokens.c.expires_at,
            tokens.c.endpoint_id,
        )
        .join_from(tokens, users)
        .order_by(tokens.c.created_at)
    )
    return [
        Token(row.hash[:TOKEN_ID_LENGTH], row.name, row.created_at, row.expires_at, row.endpoint_id)
        for row in connection.execute(query)
    ]


def token_id(token: str) -> str:
    """Return the id of a token, as it is listed."""
    return hash_of(token)[:TOKEN_ID_LENGTH]


def groups_of(connection: sa.Connection, user_id: str) -> set[str]:
    """Return the names of a user's groups."""
    query = sa.select(group_members.c.name).where(group_members.c.user_id == user_id)
    return set(connection.scalars(query))


def join_group(connection: sa.Connection, group: str, user_id: str) -> None:
    """Add a user to a group, which is created if missing."""
    if group not in groups_of(connection, user_id):
        connection.execute(sa.insert(group_members).values(name=group, user_id=user_id))


def leave_group(connection: sa.Connection, group: str, user_id: str) -> bool:
    """Remove a user from a group; return whether the user was a member."""
    membership = (group_members.c.name == group) & (group_members.c.user_id == user_id)
    return connection.execute(sa.delete(group_members).where(membership)).rowcount > 0


def list_groups(connection: sa.Connection) -> dict[str, list[str]]:
    """Return the names of the members of each group; groups and members are sorted."""
    query = (
        sa.select(group_members.c.name, users.c.name.label("user"))
        .join_from(group_members, users)
        .order_by(group_members.c.name, users.c.name)
    )
    found: dict[str, list[str]] = {}
    for row in connection.execute(query):
        found.setdefault(row.name, []).append(row.user)
    return found


def hash_of(token: str) -> str:
    """Return the SHA-256 of a token, hexadecimal."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
