"""Error messages for people: one sentence; for an internal error, also where its traceback is."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

import click

from flux_endpoint import __version__, paths
from flux_endpoint.cli.exits import ExitCode, exit_code_of
from flux_endpoint.errors import FluxEndpointError

#: Size in bytes at which the file of internal errors is started anew.
MAX_BUG_FILE = 1 << 20


def tell(error: BaseException, *, command: str, debug: bool) -> ExitCode:
    """Print on standard error what went wrong; return the exit code.

    Args:
        error: the error that ended the command.
        command: name of the command, without its arguments, which may be secret.
        debug: whether to show tracebacks.
    """
    code = exit_code_of(error)
    if debug and code not in {ExitCode.CLOSED_PIPE, ExitCode.INTERRUPTED}:
        traceback.print_exception(error)
    match error:
        case BrokenPipeError():
            _drop_output()
        case click.ClickException():
            error.show()
        case click.Abort() | KeyboardInterrupt():
            click.echo("Interrupted.", err=True)
        case FluxEndpointError():
            click.echo(f"Error: {error}", err=True)
        case OSError():
            _drop_unwritable_output()
            click.echo(f"Error: {_of_system(error)}", err=True)
        case _:
            click.echo(_of_bug(error, command, debug=debug), err=True)
    return code


def _drop_unwritable_output() -> None:
    """Drop output that a full disk rejects: the interpreter would fail on it again at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    """Write nothing more to a pipe without readers, not even at the exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def _of_system(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{error.filename}: {reason}"


def _of_bug(error: BaseException, command: str, *, debug: bool) -> str:
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    text = f"Error: `{command}` hit an internal error: {what}"
    if debug:
        return f"{text}\nPlease report it with the traceback above."
    where = _record(error, command)
    if where is None:
        return f"{text}\nPlease report it with the output of --debug."
    return f"{text}\nThe details are in {where}; please report it with them. --debug shows them."


def _record(error: BaseException, command: str) -> Path | None:
    """Append the traceback to the file of internal errors; return its path, or `None`."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    header = (
        f"{moment} {command}: flux-endpoint {__version__}, Python {platform.python_version()}, "
        f"{platform.platform()}\n"
    )
    text = header + "".join(traceback.format_exception(error)) + "\n"
    for directory in (paths.home, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError, FluxEndpointError):
            path = directory() / f"flux-endpoint-bugs-{os.getuid()}.log"
            return _append(path, text)
    return None


def _append(path: Path, text: str) -> Path:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8", errors="replace") as file:
        if file.tell() > MAX_BUG_FILE:
            file.truncate(0)
        file.write(text)
    return path
