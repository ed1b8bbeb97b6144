"""Options of a call that set up its process: standard input, working directory, variables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import PurePath, PurePosixPath
from typing import Any, Final

from flux_endpoint.errors import FluxEndpointError


class ProcessValueError(FluxEndpointError, ValueError):
    """An option has an invalid value; the text continues its name with the rule."""


#: The most characters of the three options together, as JSON: they travel in one header, with
#: others.
MAX_PROCESS_OPTIONS: Final = 32 << 10
#: Longest path, in bytes (Linux's PATH_MAX).
_LONGEST_PATH = 4096
#: Key of `stdin` for a file's path; a text is the input itself.
_FILE = "file"
#: Variables that the endpoint sets for each task.
_OF_THE_ENDPOINT = frozenset({"GC_TASK_UUID", "GC_TASK_SANDBOX_DIR"})


def checked_stdin(value: Any) -> str | PurePosixPath:
    """Return a call's standard input: its text, or the path of a file at the endpoint.

    Args:
        value: a text, a path object, or `{"file": path}`, as a path object is sent.

    Raises:
        ProcessValueError: it is something else; the text is the rule.
    """
    if isinstance(value, Mapping) and set(value) == {_FILE}:
        return PurePosixPath(_path(value[_FILE]))
    if isinstance(value, PurePath):
        return PurePosixPath(_path(value))
    if not isinstance(value, str):
        raise ProcessValueError(
            "must be text, or the path of a file at the endpoint as pathlib.Path, got "
            f"{type(value).__name__}"
        )
    _check_text(value)
    return value


def checked_cwd(value: Any) -> str:
    """Return a call's working directory.

    Raises:
        ProcessValueError: it is no path; the text is the rule.
    """
    return _path(value)


def checked_env(value: Any) -> dict[str, str | None]:
    """Return variables by name; `None` unsets one.

    Raises:
        ProcessValueError: it is something else; the text is the rule. Values are not in it.
    """
    if not isinstance(value, Mapping):
        raise ProcessValueError(f"must be a dictionary of variables, got {type(value).__name__}")
    for name, setting in value.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise ProcessValueError(f"has {name!r:.100}, which is no name of a variable")
        if name in _OF_THE_ENDPOINT:
            raise ProcessValueError(f"has {name}, which the endpoint sets for each task")
        if setting is not None and not isinstance(setting, str):
            raise ProcessValueError(
                f"[{name!r:.100}] must be text, or None to unset it, got {type(setting).__name__}"
            )
        if "\0" in (setting or ""):
            raise ProcessValueError(
                f"[{name!r:.100}] has a NUL character, which no variable can have"
            )
        _check_text(f"{name}{setting}")
    return dict(sorted(value.items()))


def process_json(
    stdin: str | PurePosixPath | None, cwd: str, env: Mapping[str, str | None]
) -> dict[str, Any]:
    """Return the options that are set, as JSON has them.

    Raises:
        ProcessValueError: together they are too long.
    """
    given = {
        "stdin": {_FILE: str(stdin)} if isinstance(stdin, PurePosixPath) else stdin,
        "cwd": cwd or None,
        "env": dict(env) or None,
    }
    found = {name: value for name, value in given.items() if value is not None}
    if found and (size := len(json.dumps(found))) > MAX_PROCESS_OPTIONS:
        raise ProcessValueError(
            f"stdin, cwd and env together are {size} characters as JSON, the limit is "
            f"{MAX_PROCESS_OPTIONS}: put a large input into a file, stdin=Path('/path/of/file')"
        )
    return found


#: The check of each option.
PROCESS_CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "stdin": checked_stdin,
    "cwd": checked_cwd,
    "env": checked_env,
}


def _path(value: Any) -> str:
    path = os.fspath(value) if isinstance(value, PurePath) else value
    if not isinstance(path, str):
        raise ProcessValueError(f"must be a path, got {type(value).__name__}")
    if not path or "\0" in path or len(path) > _LONGEST_PATH:
        raise ProcessValueError(f"must be a path of 1 to {_LONGEST_PATH} characters, without NUL")
    _check_text(path)
    return path


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeError:
        raise ProcessValueError("has a lone surrogate, which UTF-8 can't hold") from None
