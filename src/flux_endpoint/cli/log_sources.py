"""The logs on this machine, and their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flux_endpoint import paths
from flux_endpoint.cli.options import local_name
from flux_endpoint.endpoint.directory import EndpointDirectory, all_endpoints
from flux_endpoint.errors import ConfigurationError, NotFoundError
from flux_endpoint.stack.state import StackDirectory

#: The programs of a stack besides its endpoint.
PROGRAMS = ("broker", "service", "up")
_STACK = "stack/"
#: Suffix of an endpoint's name for the output of its functions.
_OUTPUT = "/output"
#: Suffixes of the files with the output of a task's command.
_STREAMS = (".stdout", ".stderr")


@dataclass(frozen=True)
class LogSource:
    """A log.

    Attributes:
        name: an endpoint's name, the same with `/output`, or the name of a program of the stack.
        path: the present or latest file; need not exist.
        absent: why there may be no such file.
    """

    name: str
    path: Path
    absent: str = "a program in the foreground logs to its terminal"


def find_sources(names: tuple[str, ...]) -> list[LogSource]:
    """Return the logs with these names; without names, all that exist.

    Raises:
        NotFoundError: there is no such endpoint or program, or no log at all.
    """
    if names:
        return [_source(name) for name in dict.fromkeys(names)]
    stack = [_of_stack(program) for program in PROGRAMS] if _has_stack() else []
    endpoints = list(all_endpoints())
    of_endpoints = (one for each in endpoints for one in (_of_endpoint(each), _output_of(each)))
    everything = [*stack, *of_endpoints]
    found = [each for each in everything if each.path.exists()]
    if not found:
        raise NotFoundError(
            f"there are no logs in {paths.home()}: nothing has run in the background there"
        )
    return found


def task_sources(task_id: str, directory: EndpointDirectory) -> list[LogSource]:
    """Return the files into which the output of a task's command went.

    They are those that are named after the task, or are in its sandbox.

    Args:
        task_id: the task.
        directory: its endpoint's directory.

    Raises:
        NotFoundError: there are none; the text says where to look.
        ConfigurationError: the endpoint's configuration can't be read.
    """
    from flux_endpoint.endpoint.config import load_config  # noqa: PLC0415 - other logs need none

    work = directory.path / load_config(directory.config).engine.working_dir
    files = (
        path
        for pattern in (f"{task_id}.*", f"{task_id}/*", f"{task_id}.*/*")
        for path in sorted(work.glob(pattern))
        if path.suffix in _STREAMS and path.is_file()
    )
    found = [LogSource(path.suffix[1:], path) for path in files]
    if not found:
        raise NotFoundError(
            f"task {task_id} has left no files of output in {work}: only commands do that write "
            "something, unless they name files of their own. What functions print is in "
            f"`flux-endpoint task {task_id}`, and with that of all others in "
            f"`flux-endpoint logs {directory.name}{_OUTPUT}`"
        )
    return found


def known_names() -> list[str]:
    """Return all valid names."""
    programs = PROGRAMS if _has_stack() else ()
    endpoints = list(all_endpoints())
    printed = (_output_of(each) for each in endpoints)
    outputs = [each.name for each in printed if each.path.exists()]
    return [*(each.name for each in endpoints), *outputs, *programs]


def _source(text: str) -> LogSource:
    endpoint, slash, rest = text.partition("/")
    name = f"{local_name(None, None, endpoint)}{slash}{rest}"
    for directory in all_endpoints():
        if name == directory.name:
            return _of_endpoint(directory)
        if name == f"{directory.name}{_OUTPUT}":
            return _output_of(directory)
    program = name.removeprefix(_STACK)
    if program in PROGRAMS:
        if not _has_stack():
            raise NotFoundError(f"no stack has run in {paths.home()}: flux-endpoint up")
        return _of_stack(program)
    names = ", ".join(known_names())
    there_are = f"there are: {names}" if names else "there are none yet"
    raise NotFoundError(f"neither an endpoint nor a program is called {name!r}; {there_are}")


def _has_stack() -> bool:
    return (paths.home() / "stack").is_dir()


def _of_stack(program: str) -> LogSource:
    stack = StackDirectory()
    if program == "broker":
        return LogSource(program, stack.broker / "log" / "rabbit.log")
    return LogSource(program, stack.log if program == "up" else stack.program_log(program))


def _of_endpoint(directory: EndpointDirectory) -> LogSource:
    """Return an endpoint's log: in the stack's directory, if a stack runs it, else in its own."""
    candidates = [directory.log]
    if _has_stack():
        stack = StackDirectory()
        try:
            runs_it = stack.load().endpoint_name == directory.name
        except ConfigurationError:
            runs_it = False
        if runs_it:
            candidates.append(stack.program_log("endpoint"))
    return LogSource(directory.name, max(candidates, key=_written))


def _output_of(directory: EndpointDirectory) -> LogSource:
    """Return the log of the output of an endpoint's Python functions."""
    absent = "no Python function of this endpoint has printed anything"
    return LogSource(f"{directory.name}{_OUTPUT}", directory.output_log, absent)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
