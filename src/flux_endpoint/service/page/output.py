"""A task's result as text for a page; nothing of it is run or imported."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from pydantic import BaseModel

#: Longest text, in characters, and most of its last lines.
LONGEST = 16 << 10
MOST_LINES = 100
#: Largest serialized value that is read.
LARGEST = 1 << 20

#: Begins a pickle in base64, by `serialize.strategies`, which is not imported here: it brings dill
#: along.
_DATA = b"00\n"
_COMMAND = ("cmd", "stdout", "stderr", "returncode")


class ShownOutput(BaseModel):
    """The ends of a task's texts; `None`: there is none, or it can't be shown."""

    #: The command line that was run.
    command: str | None = None
    #: The end of what it wrote, or of what a function printed.
    stdout: str | None = None
    stderr: str | None = None
    #: Exit code of a command; negative: the signal that ended it.
    returncode: int | None = None
    #: The value of a function, if it is plain data.
    value: str | None = None
    #: The text of the error.
    error: str | None = None
    #: Bytes of the result as it is stored.
    size: int = 0


def shown_output(result: bytes | None, *, failed: bool) -> ShownOutput:
    """Return what can be shown of a result.

    Args:
        result: the serialized value, or the text of the error.
        failed: which of the two it is.
    """
    if result is None:
        return ShownOutput()
    if failed:
        return ShownOutput(error=shown_end(result.decode(errors="replace")), size=len(result))
    shown = ShownOutput(size=len(result))
    if len(result) > LARGEST:
        return shown
    try:
        value, is_plain = _value_of(result)
        if not is_plain:
            return shown.model_copy(update=_command(value))
        return shown.model_copy(update={"value": shown_end(repr(value))})
    except ValueError:  # also an integer of very many digits
        return shown


def command_streams(result: bytes) -> dict[str, str]:
    """Return all that a command's result has of its two streams; nothing if it can't be read."""
    try:
        value, _ = _value_of(result)
    except ValueError:
        return {}
    names = _COMMAND[1:3]
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in names):
        return {}
    return {name: value[name].encode(errors="replace").decode() for name in names}


def _value_of(result: bytes) -> tuple[Any, bool]:
    """Return a serialized value, or an object's attributes, and whether it is plain data.

    Raises:
        ValueError: it is neither.
    """
    if not result.startswith(_DATA):
        raise ValueError("it is no pickle")
    # Imported here: it brings along what the service needs for nothing else.
    from flux_endpoint.functions.safe_pickle import (  # noqa: PLC0415
        Instance,
        read_inert,
        require_plain,
    )

    value = read_inert(b64decode(result.removeprefix(_DATA)))
    if isinstance(value, Instance) and isinstance(value.state, dict):
        return value.state, False
    require_plain(value)
    return value, True


def _command(state: dict[Any, Any]) -> dict[str, Any]:
    """Return the fields of a `ShellResult`; of another object, nothing."""
    if not set(_COMMAND) <= set(state):
        return {}
    command, stdout, stderr, returncode = (state[name] for name in _COMMAND)
    if not all(isinstance(each, str) for each in (command, stdout, stderr)):
        return {}
    return {
        "command": shown_end(command),
        "stdout": shown_end(stdout),
        "stderr": shown_end(stderr),
        "returncode": returncode if isinstance(returncode, int) else None,
    }


def shown_end(text: str) -> str:
    """Return the last lines of a text; JSON can't hold lone surrogates."""
    lines = text[-LONGEST:].encode(errors="replace").decode().splitlines()
    cut = len(text) > LONGEST or len(lines) > MOST_LINES
    return "\n".join([*(["…"] if cut else []), *lines[-MOST_LINES:]])
