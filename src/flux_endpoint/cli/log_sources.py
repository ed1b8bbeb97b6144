"""Which logs there are on this machine, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flux_endpoint import paths
from flux_endpoint.endpoint.directory import EndpointDirectory, all_endpoints
from flux_endpoint.errors import ConfigurationError, NotFoundError
from flux_endpoint.stack.state import StackDirectory

#: The programs of a stack beside its endpoint.
PROGRAMS = ("broker", "service", "up")
_STACK = "stack/"


@dataclass(frozen=True)
class LogSource:
    """A log.

    Attributes:
        name: an endpoint's name, or that of a program of the stack.
        path: the file that it is written to, or was last; need not exist.
    """

    name: str
    path: Path


def find_sources(names: tuple[str, ...]) -> list[LogSource]:
    """Return the logs that `names` mean, all that exist if there are none.

    Raises:
        NotFoundError: there is no such endpoint or program, or no log at all.
    """
    if names:
        return [_source(name) for name in dict.fromkeys(names)]
    stack = [_of_stack(program) for program in PROGRAMS] if _has_stack() else []
    everything = [*stack, *(_of_endpoint(each) for each in all_endpoints())]
    found = [each for each in everything if each.path.exists()]
    if not found:
        raise NotFoundError(
            f"there are no logs in {paths.home()}: nothing was run in the background there"
        )
    return found


def known_names() -> list[str]:
    """Return what may be asked for."""
    programs = PROGRAMS if _has_stack() else ()
    return [*(each.name for each in all_endpoints()), *programs]


def _source(name: str) -> LogSource:
    for directory in all_endpoints():
        if name == directory.name:
            return _of_endpoint(directory)
    program = name.removeprefix(_STACK)
    if program in PROGRAMS:
        if not _has_stack():
            raise NotFoundError(f"no stack was run in {paths.home()}: flux-endpoint up")
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
    """An endpoint that a stack runs logs there; else, in the background, in its own directory."""
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


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
