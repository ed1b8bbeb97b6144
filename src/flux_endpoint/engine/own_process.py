"""A task's own standard input, working directory and variables, in the process that runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.functions.execution import CommandPlace, commands_at


class ProcessOptionError(FluxEndpointError):
    """A task's input or directory can't be used on this node; the text says why."""


@contextmanager
def own_process(options: Mapping[str, Any]) -> Iterator[None]:
    """Give this process a task's standard input, working directory and variables.

    It must be in the directory of the task. Whoever calls this undoes the changes afterwards (see
    `ProcessState.restore`), also those that the task makes itself.

    Args:
        options: `RunOptions.process`.

    Raises:
        ProcessOptionError: the directory or the file of the input can't be used.
    """
    for name, value in options.get("env", {}).items():
        if value is not None:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
    files = Path.cwd()
    if "cwd" in options:
        _enter(options["cwd"])
    if "stdin" in options:
        _read_from(options["stdin"])
    with commands_at(CommandPlace(files, Path.cwd(), has_input="stdin" in options)):
        yield


def _enter(directory: str) -> None:
    try:
        if not Path(directory).is_absolute():
            Path(directory).mkdir(parents=True, exist_ok=True)
        os.chdir(directory)
    except OSError as error:
        raise ProcessOptionError(_unusable("cwd", directory, error)) from None


def _read_from(source: str | Mapping[str, str]) -> None:
    """Make a text or a file the standard input: descriptor 0, and a new `sys.stdin` on it."""
    try:
        descriptor = _file_of(source) if isinstance(source, str) else _opened(source["file"])
    except OSError as error:
        name = "" if isinstance(source, str) else source["file"]
        raise ProcessOptionError(_unusable("stdin", name, error)) from None
    os.dup2(descriptor, 0)
    os.close(descriptor)
    # A new stream: the old one is the next task's, and must have read nothing of this input.
    stream = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdin = sys.__stdin__ = stream  # type: ignore[misc]


def _file_of(text: str) -> int:
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    left = memoryview(text.encode())
    while left:
        left = left[os.write(descriptor, left) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _opened(path: str) -> int:
    if Path(path).is_dir():
        raise IsADirectoryError(None, "Is a directory")
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _unusable(option: str, name: str, error: OSError) -> str:
    return f"{option} {name!r} can't be used on {os.uname().nodename}: {error.strerror}"
