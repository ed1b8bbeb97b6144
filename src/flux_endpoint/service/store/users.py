"""Users, their groups, and their bearer tokens, which are stored as SHA-256 hashes only."""

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from flux_endpoint.service.scope import DEFAULT_SCOPES, TokenScope, known_scopes
from flux_endpoint.service.store.tables import endpoints, group_members, tokens, users

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
        scopes: what the request's token permits.
        limits: the limits that are set for the user, by name.
        token_used_at: last recorded use of the request's token (seconds since the epoch).
    """

    id: str
    name: str
    endpoint_id: str | None = None
    token_id: str = ""
    scopes: frozenset[TokenScope] = DEFAULT_SCOPES
    limits: Mapping[str, Any] = field(default_factory=dict, hash=False)
    token_used_at: float | None = None

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
    scopes: frozenset[TokenScope] = DEFAULT_SCOPES
    label: str | None = None
    #: `None`: it was never used, or not since uses are recorded.
    last_used_at: float | None = None

    def is_expired(self, now: float) -> bool:
        """Return whether it has expired at `now` (seconds since the epoch)."""
        return self.expires_at is not None and self.expires_at <= now


def user_by_token(connection: sa.Connection, token: str) -> User | None:
    """Return the user of a token; `None` if the token is unknown or expired."""
    return user_by_hash(connection, hash_of(token))


def user_by_hash(connection: sa.Connection, token_hash: str) -> User | None:
    """Return the user of the token with a hash; `None` if it is unknown or expired."""
    row = connection.execute(_BY_TOKEN, {"hash": token_hash, "now": time.time()}).one_or_none()
    if row is None:
        return None
    return User(
        row.id,
        row.name,
        row.endpoint_id,
        token_hash[:TOKEN_ID_LENGTH],
        known_scopes(row.scopes),
        row.limits or {},
        row.last_used_at,
    )


def note_use(connection: sa.Connection, token_id: str, now: float) -> None:
    """Record that a token was used at `now` (seconds since the epoch)."""
    its = sa.func.substr(tokens.c.hash, 1, TOKEN_ID_LENGTH) == token_id
    connection.execute(sa.update(tokens).where(its).values(last_used_at=now))


def is_disabled(connection: sa.Connection, token: str) -> bool:
    """Return whether a token is one of a user who is disabled."""
    query = (
        sa.select(users.c.disabled_at)
        .join_from(tokens, users)
        .where(tokens.c.hash == hash_of(token))
    )
    return connection.scalar(query) is not None


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
    sa.select(
        users.c.id,
        users.c.name,
        users.c.limits,
        tokens.c.endpoint_id,
        tokens.c.scopes,
        tokens.c.last_used_at,
    )
    .join_from(tokens, users)
    .where(
        tokens.c.hash == sa.bindparam("hash"),
        is_valid(sa.bindparam("now")),
        users.c.disabled_at.is_(None),
    )
)


def create_user(connection: sa.Connection, name: str) -> str:
    """Create a user and return the id; nobody has the name yet."""
    user_id = str(uuid4())
    connection.execute(sa.insert(users).values(id=user_id, name=name, created_at=time.time()))
    return user_id


def create_token(
    connection: sa.Connection,
    user_name: str,
    expires_at: float | None = None,
    *,
    scopes: frozenset[TokenScope] | None = None,
    label: str | None = None,
) -> str:
    """Create a token for a user, who is created if missing; return the token.

    Args:
        connection: a transaction that writes.
        user_name: name of the user.
        expires_at: end of its validity (seconds since the epoch); `None`: it never expires.
        scopes: what it permits; `None`: everything that the user may do, but no administration.
        label: what it is for, as lists of tokens show it.
    """
    user_id = user_id_of(connection, user_name) or create_user(connection, user_name)
    return _new_token(
        connection,
        user_id,
        expires_at=expires_at,
        scopes=None if scopes is None else sorted(scopes),
        label=label,
    )


def create_endpoint_token(
    connection: sa.Connection,
    owner_id: str,
    endpoint_id: str,
    expires_at: float | None = None,
    label: str | None = None,
) -> str:
    """Create a token for one endpoint and return it; the oldest ones are deleted.

    Args:
        connection: a transaction that writes.
        owner_id: id of the endpoint's owner.
        endpoint_id: the endpoint.
        expires_at: end of its validity (seconds since the epoch); `None`: it never expires.
        label: what it is for, as lists of tokens show it.
    """
    newest = connection.scalars(
        sa.select(tokens.c.hash)
        .where(tokens.c.endpoint_id == endpoint_id)
        .order_by(tokens.c.created_at.desc())
        .limit(ENDPOINT_TOKENS - 1)
    ).all()
    revoke_endpoint_tokens(connection, [endpoint_id], keep=newest)
    return _new_token(
        connection, owner_id, endpoint_id=endpoint_id, expires_at=expires_at, label=label
    )


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


def _new_token(connection: sa.Connection, user_id: str, **values: Any) -> str:
    token = secrets.token_urlsafe(32)
    created = {"hash": hash_of(token), "user_id": user_id, "created_at": time.time()}
    connection.execute(sa.insert(tokens).values(**created, **values))
    return token


def user_id_of(connection: sa.Connection, name: str) -> str | None:
    """Return the id of the user with a name; `None` if there is none."""
    return connection.scalar(sa.select(users.c.id).where(users.c.name == name))


def all_names(connection: sa.Connection) -> set[str]:
    """Return the names of all users."""
    return set(connection.scalars(sa.select(users.c.name)))


def known_token_id(connection: sa.Connection, token_or_id: str) -> str | None:
    """Return the id of the token with an id or a text; `None`: there is none."""
    its_id = sa.func.substr(tokens.c.hash, 1, TOKEN_ID_LENGTH)
    matches = (tokens.c.hash == hash_of(token_or_id)) | (its_id == token_or_id)
    return connection.scalar(sa.select(its_id).where(matches))


def revoke_token(connection: sa.Connection, token_or_id: str) -> bool:
    """Delete a token; return whether it existed.

    Args:
        connection: a transaction that writes.
        token_or_id: the token or its id.
    """
    by_id = sa.func.substr(tokens.c.hash, 1, TOKEN_ID_LENGTH) == token_or_id
    matches = (tokens.c.hash == hash_of(token_or_id)) | by_id
    return connection.execute(sa.delete(tokens).where(matches)).rowcount > 0


def list_tokens(connection: sa.Connection, user_id: str | None = None) -> list[Token]:
    """Return all tokens, oldest first.

    The last use of an endpoint's token is its endpoint's last report, if that came later: an
    endpoint that runs makes no requests.

    Args:
        connection: a transaction.
        user_id: only tokens of this user.
    """
    query = (
        sa.select(
            tokens.c.hash,
            users.c.name,
            tokens.c.created_at,
            tokens.c.expires_at,
            tokens.c.endpoint_id,
            tokens.c.scopes,
            tokens.c.label,
            tokens.c.last_used_at,
        )
        .join_from(tokens, users)
        .order_by(tokens.c.created_at)
    )
    if user_id is not None:
        query = query.where(tokens.c.user_id == user_id)
    reports = sa.select(endpoints.c.token_id, sa.func.max(endpoints.c.last_seen)).where(
        endpoints.c.token_id.is_not(None), endpoints.c.last_seen.is_not(None)
    )
    rows = connection.execute(reports.group_by(endpoints.c.token_id))
    reported = {row[0]: row[1] for row in rows}
    found = []
    for row in connection.execute(query):
        its_id = row.hash[:TOKEN_ID_LENGTH]
        uses = [use for use in (row.last_used_at, reported.get(its_id)) if use is not None]
        found.append(
            Token(
                its_id,
                row.name,
                row.created_at,
                row.expires_at,
                row.endpoint_id,
                known_scopes(row.scopes),
                row.label,
                max(uses, default=None),
            )
        )
    return found


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


def limits_of(connection: sa.Connection, user_id: str) -> dict[str, Any]:
    """Return the limits that are set for a user, by name."""
    found: dict[str, Any] | None = connection.scalar(
        sa.select(users.c.limits).where(users.c.id == user_id)
    )
    return found or {}


def set_rate_left(connection: sa.Connection, user_id: str, left: float, now: float) -> None:
    """Record how many tasks a user may still submit at once, at `now` (seconds since the epoch)."""
    its = sa.update(users).where(users.c.id == user_id)
    connection.execute(its.values(rate_left=left, rate_counted_at=now))
