"""Exceptions as data: the name of the type, and plain arguments.

A failed result has the exception's text. If its arguments are plain, the result's details also have
it as JSON: `{"type": "ZeroDivisionError", "args": ["division by zero"]}`. Other types than Python's
own have the name of their module: `mesh.errors.Degenerate`. From such data a reader makes Python's
own exceptions, and those of the types that its user has named, and nothing else.
"""

from __future__ import annotations

import builtins
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Key in a result's `details`.
EXCEPTION = "exception"
#: Key there for the names of the exception's class and its base classes, separated by spaces.
RAISED = "raised"

#: Limits: number of arguments, and characters of the whole text.
_MAX_ARGUMENTS = 8
_LONGEST = 8192
#: The most characters of the names of an exception's classes.
MAX_NAMES = 2048

_FILE_ARGUMENTS = 2


def exception_text(error: BaseException) -> str | None:
    """Return an exception as JSON; `None` if it is not an `Exception`, or not plain.

    Args:
        error: any exception.
    """
    kind = type(error)
    args = error.args
    if isinstance(error, OSError) and len(args) == _FILE_ARGUMENTS and error.filename is not None:
        args = (*args, error.filename)
    if (
        not isinstance(error, Exception)
        or type(args) is not tuple
        or len(args) > _MAX_ARGUMENTS
        or not all(map(_is_plain, args))
    ):
        return None
    try:
        text = json.dumps({"type": class_name(kind), "args": args})
    except ValueError:  # Python writes no number of more than 4300 digits
        return None
    return text if len(text) <= _LONGEST else None


def class_name(kind: type) -> str:
    """Return the name of a class with its module, unless it is built in."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


@dataclass(frozen=True)
class RemoteErrors:
    """How a client reads exceptions of tasks.

    Attributes:
        classes: classes of exceptions that may be made again besides Python's own, by name.
        are_raised: whether a future raises such an exception itself.
    """

    classes: Mapping[str, type[Exception]] = field(default_factory=dict)
    are_raised: bool = False

    @classmethod
    def of(cls, kinds: Iterable[type[Exception]], *, are_raised: bool) -> RemoteErrors:
        """Return those with the given classes.

        Args:
            kinds: the classes.
            are_raised: whether a future raises such an exception itself.

        Raises:
            TypeError: `kinds` is not a list of classes of exceptions.
        """
        if isinstance(kinds, type | str) or not isinstance(kinds, Iterable):
            raise TypeError(f"exceptions must be a list of classes, got {kinds!r}")
        classes = list(kinds)
        for kind in classes:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise TypeError(f"exceptions must be classes derived from Exception, got {kind!r}")
        return cls({class_name(kind): kind for kind in classes}, bool(are_raised))


def class_names(error: BaseException) -> str:
    """Return the names of an exception's class and its base classes, separated by spaces.

    Args:
        error: any exception.
    """
    names = [class_name(kind) for kind in type(error).__mro__ if kind is not object]
    while len(names) > 1 and sum(map(len, names)) + len(names) > MAX_NAMES:
        names.pop()
    return " ".join(names)[:MAX_NAMES]


def exception_from(
    text: object, types: Mapping[str, type[Exception]] | None = None
) -> Exception | None:
    """Return the exception in the text that `exception_text` made; `None` if there is none.

    Args:
        text: the text, from anybody.
        types: types of exceptions that may be made, by `class_name`, besides Python's own.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        return None
    try:
        fields = json.loads(text)
        name, args = fields["type"], fields["args"]
        kind = _built_in(name) or (types or {}).get(name)
        if kind is None or not isinstance(args, list) or not all(map(_is_plain, args)):
            return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    try:
        made = kind(*args)
    except Exception:  # noqa: BLE001 - the type may be the user's, with arguments of another kind
        return None
    return made if isinstance(made, Exception) else None


def _built_in(name: object) -> type[Exception] | None:
    kind = vars(builtins).get(name) if isinstance(name, str) else None
    # Neither SystemExit nor KeyboardInterrupt; and the name of an alias is another's (IOError).
    if isinstance(kind, type) and issubclass(kind, Exception) and kind.__name__ == name:
        return kind
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or type(value) in (str, int, bool)
