"""`ShellFunction`: a command line that is called like a function."""

from __future__ import annotations

import difflib
import inspect
import keyword
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flux_endpoint.errors import suggestion
from flux_endpoint.functions.execution import run_command
from flux_endpoint.functions.fields import format_fields, is_quoting
from flux_endpoint.functions.result import ShellResult

#: Types whose values are formatted identically everywhere.
_PLAIN = frozenset({str, int, float, complex, bool, type(None)})


class _Anything:
    """Placeholder for an unknown value."""

    def __format__(self, spec: str) -> str:
        return ""

    def __repr__(self) -> str:  # used by `{x!r}` and `{x!s}`
        return ""

    def __getattr__(self, name: str) -> _Anything:
        return self

    def __getitem__(self, key: object) -> _Anything:
        return self


_ANYTHING = _Anything()


#: The most characters of a command that `str()` shows, and the column where it begins.
_SHOWN_LINES = 10
_SHOWN_CHARACTERS = 1024
_COMMAND_COLUMN = 12


class ShellFunction:
    r"""A command line, run by `bash` on the endpoint.

    Args:
        cmd: the command line; `{name}` in it is replaced by the keyword argument `name` of a call,
            `{name!q}` by the same quoted as one shell word; literal braces are doubled.
        stdout: file on the endpoint to append standard output to; by default a new one.
        stderr: the same for standard error.
        walltime: seconds after which the command and all of its processes are ended.
        snippet_lines: number of last lines of each stream in the result.
        name: name to register the function with; by default the name of the class.
        return_dict: whether calls return a `dict` that JSON can carry instead of a `ShellResult`.

    Raises:
        TypeError: an argument is unknown.
        ValueError: an argument has an invalid value.

    Example:
        >>> ShellFunction("echo Hello {whom}")(whom="world").stdout
        'Hello world\n'
    """

    #: Prepended to the formatted command.
    command_prefix: ClassVar[str] = ""
    #: The type of a call's result.
    result_type: ClassVar[type[ShellResult]] = ShellResult

    __name__: str

    def __init__(  # noqa: PLR0917 - the official signature
        self,
        cmd: str,
        stdout: str | os.PathLike[str] | None = None,
        stderr: str | os.PathLike[str] | None = None,
        walltime: float | None = None,
        snippet_lines: int = 1000,
        name: str | None = None,
        return_dict: bool = False,
        **unknown: Any,
    ) -> None:
        _refuse_unknown(type(self), unknown)
        if not isinstance(cmd, str):
            raise ValueError(f"cmd must be a string, got {_shown(cmd)}")  # noqa: TRY004
        if "\0" in cmd:
            raise ValueError("cmd must not have a null character in it")
        self.cmd = cmd
        self.stdout = _path("stdout", stdout)
        self.stderr = _path("stderr", stderr)
        self.walltime = _walltime(walltime)
        self.snippet_lines = _lines(snippet_lines)
        self.__name__ = _name(name if name is not None else type(self).__name__)
        if not isinstance(return_dict, bool):
            raise ValueError(  # noqa: TRY004
                f"return_dict must be True or False, got {_shown(return_dict)}"
            )
        self.return_dict = return_dict

    def format_command(self, arguments: Mapping[str, Any]) -> str:
        """Return the command line of a call, without a prefix.

        Args:
            arguments: the keyword arguments of the call.

        Raises:
            TypeError: an argument that the command line names is missing.
            ValueError: the command line, or one of its fields, can't be formatted.
        """
        try:
            command = format_fields(self.cmd, arguments)
        except KeyError as error:
            given = ", ".join(arguments) or "none"
            raise TypeError(
                f"{self.__name__}: the command has the field {{{error.args[0]}}} but the call has "
                f"no such keyword argument (it has: {given}); literal braces are written {{{{ }}}}"
            ) from None
        except IndexError:
            raise TypeError(
                f"{self.__name__}: the command has a field without a name ({{}} or {{0}}); fields "
                "are keyword arguments, literal braces are written {{ }}"
            ) from None
        except Exception as error:
            raise ValueError(
                f"{self.__name__}: the command can't be formatted: {type(error).__name__}: "
                f"{error}; literal braces are written {{{{ }}}}"
            ) from error
        if "\0" in command:
            raise ValueError(f"{self.__name__}: an argument puts a null character into the command")
        return command

    def check_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise the errors that these arguments would cause in a call; run nothing.

        Values that are not plain data are not checked: their text is only known where they run.

        Args:
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.

        Raises:
            TypeError: an argument is positional, or one that the command line names is missing.
            ValueError: the command line, or one of its fields, can't be formatted.
        """
        kind = type(self)
        if kind.__call__ is not ShellFunction.__call__:
            return  # a subclass that formats its command differently
        self._refuse_positional(args)
        if kind.format_command is ShellFunction.format_command:
            self.format_command(
                {
                    name: value if type(value) in _PLAIN else _ANYTHING
                    for name, value in kwargs.items()
                }
            )

    def check_paths(self) -> None:
        """Reject stream files outside the task's directory.

        Raises:
            ValueError: a path is absolute, or leads out of the directory.
        """
        for option, path in (("stdout", self.stdout), ("stderr", self.stderr)):
            if path is not None and (path.startswith("/") or ".." in path.split("/")):
                raise ValueError(
                    f"{self.__name__}: {option} is {path!r}, but this endpoint runs chosen "
                    "functions only: their output goes to files below the task's directory"
                )

    def _refuse_positional(self, args: Sequence[Any]) -> None:
        if args:
            raise TypeError(
                f"{self.__name__} takes keyword arguments only, for the fields of its command; "
                f"got {len(args)} positional"
            )

    def __call__(self, /, *args: Any, **kwargs: Any) -> ShellResult | dict[str, Any]:
        """Run the command here, with its fields from `kwargs`.

        Raises:
            TypeError: an argument is positional, or one is missing.
            ValueError: the command line can't be formatted.
            OSError: the stream files can't be written, or there is no `bash`.
        """
        self._refuse_positional(args)
        if is_quoting():
            self.check_paths()
        command = self.command_prefix + self.format_command(kwargs)
        execution = run_command(
            command,
            stdout=self.stdout,
            stderr=self.stderr,
            walltime=self.walltime,
            snippet_lines=self.snippet_lines,
        )
        result = self.result_type(
            command,
            execution.stdout,
            execution.stderr,
            execution.outcome.returncode,
            execution.outcome.exception_name,
        )
        return vars(result) if self.return_dict else result

    def __str__(self) -> str:
        """Return the name and the options, one per line, in the official package's layout."""
        options = [
            ("wall time", self.walltime),
            ("stdout", self.stdout and repr(self.stdout)),
            ("stderr", self.stderr and repr(self.stderr)),
            ("lines", self.snippet_lines),
            ("command", _command_shown(self.cmd)),
        ]
        lines = [f"{name:>10}: {value}" for name, value in options if value is not None]
        return "\n".join([self.__name__, *lines])

    def __repr__(self) -> str:
        options = (
            ("name", self.__name__, type(self).__name__),
            ("walltime", self.walltime, None),
            ("stdout", self.stdout, None),
            ("stderr", self.stderr, None),
            ("snippet_lines", self.snippet_lines, ...),
            ("return_dict", self.return_dict, False),
            ("cmd", self.cmd, ...),
        )
        given = [f"{name}={value!r}" for name, value, default in options if value != default]
        return f"{type(self).__name__}({', '.join(given)})"


#: Options of the Executor: the resources of a submission are not part of the function.
_OF_THE_EXECUTOR = ("resource_specification", "user_endpoint_config", "endpoint_id")


def _refuse_unknown(function: type, unknown: Mapping[str, Any]) -> None:
    if not unknown:
        return  # the signature below takes as long as all the rest of a command's construction
    known = [
        name
        for name, parameter in inspect.signature(ShellFunction).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    for name in unknown:
        its = [one for one in _OF_THE_EXECUTOR if one.startswith(name)] or (
            difflib.get_close_matches(name, _OF_THE_EXECUTOR, n=1, cutoff=0.8)
        )
        if its:
            hint = f"pass it to the Executor, or set executor.{its[0]}"
        else:
            hint = suggestion(name, known, "it takes")
        raise TypeError(f"{function.__name__} takes no argument '{name}': {hint}")


def _path(option: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{option} must be the path of a file, got {_shown(value)}")
    return value


def _walltime(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError(f"walltime must be a number of seconds, got {_shown(value)}")
    if value < 0:
        raise ValueError(f"walltime must not be negative, got {value!r}")
    return value


def _lines(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"snippet_lines must be an integer, 0 or more, got {_shown(value)}")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.isidentifier() or keyword.iskeyword(value):
        raise ValueError(f"name must be a valid Python name and no keyword, got {_shown(value)}")
    return value


def _command_shown(cmd: str) -> str:
    text = cmd.strip()
    beginning = "\n".join(text[:_SHOWN_CHARACTERS].splitlines()[:_SHOWN_LINES])
    if beginning != text:
        beginning += "\n[... truncated; see .cmd for full script ...]"
    if "\n" not in beginning:
        return beginning
    indent = "\n" + " " * _COMMAND_COLUMN
    return f"-----{indent}{beginning.strip().replace(chr(10), indent)}{indent}-----"


def _shown(value: object) -> str:
    return f"{value!r} of type {type(value).__name__}"
