"""Built-in exceptions as data, from which nothing but themselves can be made.

A failed result has the exception's text. If the exception is one of Python's own and its arguments
are plain, the result's details also have it as JSON:
`{"type": "ZeroDivisionError", "args": ["division by zero"]}`.
"""

from __future__ import annotations

import builtins
import json
import math
from typing import Any

#: Key in a result's `details`.
EXCEPTION = "exception"

#: Limits: number of arguments, and characters of the whole text.
_MAX_ARGUMENTS = 8
_LONGEST = 8192

_FILE_ARGUMENTS = 2


def exception_text(error: BaseException) -> str | None:
    """Return a built-in exception as JSON; `None` if it is not one, or not plain.

    Args:
        error: any exception.
    """
    kind = type(error)
    args = error.args
    if isinstance(error, OSError) and len(args) == _FILE_ARGUMENTS and error.filename is not None:
        args = (*args, error.filename)
    if (
        _built_in(kind.__name__) is not kind
        or len(args) > _MAX_ARGUMENTS
        or not all(map(_is_plain, args))
    ):
        return None
    try:
        text = json.dumps({"type": kind.__name__, "args": args})
    except ValueError:  # Python writes no number of more than 4300 digits
        return None
    return text if len(text) <= _LONGEST else None


def exception_from(text: object) -> Exception | None:
    """Return the exception in the text that `exception_text` made; `None` if there is none.

    Args:
        text: the text, from anybody.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        return None
    try:
        fields = json.loads(text)
        kind, args = _built_in(fields["type"]), fields["args"]
        if kind is None or not isinstance(args, list) or not all(map(_is_plain, args)):
            return None
        return kind(*args)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


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
