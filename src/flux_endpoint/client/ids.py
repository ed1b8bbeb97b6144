"""Ids as users give them: `UUID` objects or their text."""

from __future__ import annotations

from typing import TypeAlias
from uuid import UUID

UuidLike: TypeAlias = UUID | str


def as_uuid(value: UuidLike, what: str) -> UUID:
    """Return `value` as a UUID.

    Raises:
        ValueError: it is not one; the text names `what` and the value.
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
    """Return `value` as a UUID, or `None` if it is that or empty, as an unset variable is."""
    return as_uuid(value, what) if value else None
