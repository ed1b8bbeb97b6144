"""Checks of the values that users pass to an Executor or assign to its attributes."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from flux_endpoint.errors import suggestion
from flux_endpoint.protocol.resources import parse_resources

# The official Executor limits its request rate with these. Accepted so that its scripts run.
_IGNORED = frozenset({"api_burst_limit", "api_burst_window_s"})

# Only the engines of official endpoints support these. Our engine refuses them on its own.
_OF_OFFICIAL_ENDPOINTS = frozenset({"priority"})


def refuse_misspelt(executor: type, attribute: str) -> None:
    """Refuse an attribute whose name looks like a misspelt argument.

    Args:
        executor: the Executor's class.
        attribute: the name that is assigned.

    Raises:
        AttributeError: the name is close to an argument's; the text suggests that argument.
    """
    known = _arguments(executor)
    near = difflib.get_close_matches(attribute, known, n=1, cutoff=0.8)
    if near and attribute not in known:
        raise AttributeError(f"Executor has no attribute '{attribute}': did you mean '{near[0]}'?")


def refuse_unknown(executor: type, unknown: dict[str, Any]) -> None:
    """Refuse keyword arguments that an Executor does not have.

    Args:
        executor: the Executor's class.
        unknown: the arguments.

    Raises:
        TypeError: there is one; the text suggests the closest valid argument.
    """
    known = _arguments(executor)
    for name in unknown.keys() - _IGNORED:
        hint = suggestion(name, known, "it takes")
        raise TypeError(f"'{name}' is an invalid argument for {executor.__name__}: {hint}")


def _arguments(executor: type) -> dict[str, None]:
    return dict.fromkeys(
        name
        for cls in executor.__mro__
        if "__init__" in vars(cls)
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    )


def checked_dict(value: Mapping[str, Any] | None, what: str) -> dict[str, Any] | None:
    """Return `value` if it is `None` or a dictionary that JSON can hold.

    Args:
        value: the value.
        what: its name in an error.

    Raises:
        TypeError: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise TypeError(f"{what} must be a dictionary, got {type(value).__name__}")
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be a dictionary that JSON can hold: {error}") from error
    return value


def checked_resources(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return `value` if it is `None` or a resource specification.

    Raises:
        TypeError: it is not a dictionary that JSON can hold.
        ResourceSpecificationError: it has an invalid key or value.
    """
    checked = checked_dict(value, "resource_specification")
    if checked:
        parse_resources({k: v for k, v in checked.items() if k not in _OF_OFFICIAL_ENDPOINTS})
    return checked


def checked_batch_size(value: int) -> int:
    """Return `value` if it is an integer of at least 1; raise ValueError otherwise."""
    if not is_int(value) or value < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {value!r}")
    return value


def checked_port(value: int | None) -> int | None:
    """Return `value` if it is a TCP port or `None`; raise ValueError otherwise."""
    if value is not None and not (is_int(value) and 0 < value < 65536):
        raise ValueError(f"amqp_port must be a port number from 1 to 65535, got {value!r}")
    return value


def checked_seconds(value: float, what: str) -> float:
    """Return `value` if it is a number of seconds of at least 0; infinity is one.

    Args:
        value: the value.
        what: its name in an error.

    Raises:
        ValueError: it is something else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not value >= 0:  # written so that NaN fails, too
        raise ValueError(f"{what} must be a number of seconds of at least 0, got {value!r}")
    return float(value)


def checked_signal(value: int) -> int:
    """Return `value` if it is the number of a signal; raise ValueError otherwise."""
    if not is_int(value) or not 1 <= value <= 64:
        raise ValueError(f"signum must be a signal's number from 1 to 64, got {value!r}")
    return int(value)


def is_int(value: object) -> bool:
    """Return whether `value` is an `int` but not a `bool`."""
    return isinstance(value, int) and not isinstance(value, bool)
