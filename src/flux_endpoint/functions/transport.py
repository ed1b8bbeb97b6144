"""Command functions on the wire: as data, which an endpoint reads without running code."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flux_endpoint.errors import DeserializationError, SerializationError
from flux_endpoint.functions import official
from flux_endpoint.functions.mpi import MPIFunction
from flux_endpoint.functions.result import ShellResult
from flux_endpoint.functions.shell import ShellFunction
from flux_endpoint.serialize import (
    DEFAULT_STRATEGY_DATA,
    IDENTIFIER_LENGTH,
    AllDataStrategies,
    ComputeSerializer,
    DillDataBase64,
    JSONData,
    SerializationStrategy,
    State,
    never_changes,
    pack_buffers,
    prefer_for_type,
    unpack_buffers,
    written_by_pickle,
)

_KINDS: dict[str, type[ShellFunction]] = {"shell": ShellFunction, "mpi": MPIFunction}
_KIND_OF = {kind: name for name, kind in _KINDS.items()}
_OPTIONS = frozenset(
    {"cmd", "stdout", "stderr", "walltime", "snippet_lines", "name", "return_dict"}
)

_JSON = JSONData.instance()
_ATOMS = (str, bool)
#: Limits for JSON: depth of nesting, and bits of integers.
_DEEPEST = 100
_LONGEST_INTEGER = 1024


class CommandFunctionCode(SerializationStrategy):
    """A `ShellFunction` or `MPIFunction` as JSON: `{"kind": "shell", "cmd": …}`."""

    identifier = "fc\n"
    for_code = True

    def serialize(self, data: Any) -> str:
        """Return the command function as JSON."""
        kind = _KIND_OF.get(type(data))
        if kind is None:
            raise SerializationError(
                f"only {' and '.join(cls.__name__ for cls in _KIND_OF)} travel this way, "
                f"not {type(data).__name__}"
            )
        walltime = data.walltime
        if walltime is not None and not math.isfinite(walltime):
            walltime = None
        fields = {
            "kind": kind,
            "cmd": data.cmd,
            "stdout": data.stdout,
            "stderr": data.stderr,
            "walltime": walltime,
            "snippet_lines": data.snippet_lines,
            "name": data.__name__,
            "return_dict": data.return_dict,
        }
        return self.identifier + json.dumps(fields)

    def state(self, data: Any) -> State | None:
        """Return the command function's options; `None` if one of them could change unnoticed."""
        options = tuple(vars(data).values())
        return (type(data), *options) if all(map(never_changes, options)) else None

    def deserialize(self, payload: str) -> ShellFunction:
        """Return the command function in `payload`.

        Raises:
            DeserializationError: it has unknown fields, lacks one, or has an invalid value.
        """
        fields = json.loads(self.chomp(payload))
        if not isinstance(fields, dict):
            raise DeserializationError(f"expected a JSON object, got {type(fields).__name__}")
        name = fields.pop("kind", None)
        kind = _KINDS.get(name) if isinstance(name, str) else None
        if kind is None:
            raise DeserializationError(
                f"a command function's kind is one of {', '.join(_KINDS)}, got {name!r}"
            )
        if unknown := fields.keys() - _OPTIONS:
            raise DeserializationError(
                f"a command function has the unknown fields {', '.join(sorted(unknown))}; "
                "the client may be newer than this program"
            )
        if "cmd" not in fields:
            raise DeserializationError("a command function lacks its 'cmd'")
        try:
            return kind(**fields)
        except ValueError as error:
            raise DeserializationError(f"a command function is malformed: {error}") from error


def command_of(task_buffer: str) -> tuple[ShellFunction, dict[str, Any]] | None:
    """Return the command function and the arguments of a command task.

    Nothing is unpickled, and no user code runs.

    Args:
        task_buffer: a packed task: function, args and kwargs.

    Returns:
        Function and keyword arguments; `None` if it is not a command task, or is malformed.
    """
    try:
        function_buffer, args, kwargs = unpack_buffers(task_buffer)
        function = read_command(function_buffer)
        if function is None or read_arguments(args) not in ([], ()):
            return None
        arguments = read_arguments(kwargs)
    except (DeserializationError, ValueError, TypeError, RecursionError):
        return None
    if not isinstance(arguments, dict) or not all(isinstance(key, str) for key in arguments):
        return None
    return function, arguments


def read_command(function_buffer: str) -> ShellFunction | None:
    """Return the command function, ours or the official one, in a function's buffer.

    Nothing is unpickled, and no user code runs.

    Returns:
        The function; `None` if it is something else, or malformed.
    """
    if not function_buffer.startswith(CommandFunctionCode.identifier):
        return official.read_function(function_buffer)
    try:
        return CommandFunctionCode.instance().deserialize(function_buffer)
    except (DeserializationError, ValueError, TypeError, RecursionError):
        return None


def read_arguments(buffer: str) -> Any:
    """Return args or kwargs that are plain data, without unpickling.

    Raises:
        DeserializationError, ValueError, TypeError, RecursionError: they contain more than that,
            are malformed, or are too large to be checked.
    """
    if buffer.startswith(AllDataStrategies.identifier):
        parts = unpack_buffers(buffer[IDENTIFIER_LENGTH:])
        buffer = parts[0] if parts else ""  # other readers also use the first
    if buffer.startswith(DillDataBase64.identifier):
        return official.read_data(buffer)
    return _JSON.deserialize(buffer)


def is_command(task_buffer: str) -> bool:
    """Return whether a task's function is a command function, regardless of its arguments."""
    try:
        function = unpack_buffers(task_buffer)[0]
    except (DeserializationError, IndexError):
        return False
    return function.startswith(CommandFunctionCode.identifier) or official.names_official_function(
        function
    )


def formatted_task(function: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the packed task of a command function with its arguments formatted into its command.

    For arguments that only Python can read: `command_of` understands the returned task.

    Raises:
        TypeError: an argument is positional, or one is missing.
        ValueError: the command can't be formatted, or is far too long.
        DeserializationError: the function is not a command function that can be used here.
    """
    literal = copy.copy(official.function_of(function))
    if args:
        raise TypeError(f"{literal.__name__} takes keyword arguments only")
    literal.cmd = literal.format_command(kwargs).replace("{", "{{").replace("}", "}}")
    ours = type(literal) in _KIND_OF
    code = CommandFunctionCode.instance().serialize if ours else official.official_code
    packed = pack_buffers([code(literal), _JSON.serialize([]), _JSON.serialize({})])
    if command_of(packed) is None:
        raise ValueError(f"{literal.__name__}: a command of {len(literal.cmd)} characters")
    return packed


def command_arguments(
    serializer: ComputeSerializer, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[str] | None:
    """Return the buffers of a command function's args and kwargs, as JSON.

    An endpoint can then read the whole task without unpickling. Returns `None` if there are
    positional arguments, if JSON would not restore exactly the same values, or if another strategy
    was selected.
    """
    if (
        args
        or serializer.data_serializer is not DEFAULT_STRATEGY_DATA
        or not is_plain_json(dict(kwargs))
    ):
        return None
    return [_JSON.serialize([]), _JSON.serialize(dict(kwargs))]


def serialize_arguments(
    serializer: ComputeSerializer,
    function: object,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> list[str]:
    """Return the buffers of a call's args and kwargs, for any kind of `function`.

    Args:
        serializer: the submitter's serializer.
        function: the function that is called.
        args: positional arguments.
        kwargs: keyword arguments.

    Raises:
        SerializationError: they can't be serialized.
    """
    if type(function) in _KIND_OF:
        buffers = command_arguments(serializer, args, kwargs)
        if buffers is not None:
            return buffers
    return [serializer.serialize(tuple(args)), serializer.serialize(dict(kwargs))]


def is_plain_json(value: Any, _depth: int = 0) -> bool:
    """Return whether `value` is exactly the same after a round trip through JSON."""
    kind = type(value)
    if kind in _ATOMS or value is None:
        return True
    if kind is int:
        return bool(value.bit_length() <= _LONGEST_INTEGER)
    if kind is float:
        return math.isfinite(value)
    if kind not in (list, dict) or _depth >= _DEEPEST:
        return False
    items = value
    if kind is dict:
        if not all(type(key) is str for key in value):
            return False
        items = value.values()
    return all(is_plain_json(item, _depth + 1) for item in items)


for _kind in _KIND_OF:
    # Exactly these types: JSON would lose a subclass, so it travels like any object.
    prefer_for_type(_kind, CommandFunctionCode)
written_by_pickle(ShellResult)
