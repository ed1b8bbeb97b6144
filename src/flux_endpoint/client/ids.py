"""Ids in arguments of users: `UUID` objects or their text."""

from __future__ import annotations

from typing import TypeAlias
from uuid import UUID

UuidLike: TypeAlias = UUID | str


def as_uuid(value: UuidLike, what: str) -> UUID:
    """Return `value` as a UUID.

    Args:
        value: the value.
        what: its name in an error.

    Raises:
        ValueError: it is not a UUID.
    """
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise ValueError(
            f"{what} must be a UUID such as '4b116d3c-1703-4f8f-9f6f-39921e5864df', got {value!r}"
        ) from None


def as_optional_uuid(value: UuidLike | None, what: str) -> UUID | None:
    """Return `value` as a UUID; `None` and "" (e.g. from an empty variable) give `None`.

    Args:
        value: the value.
        what: its name in an error.

    Raises:
        ValueError: it is not a UUID.
    """
    return as_uuid(value, what) if value else None
