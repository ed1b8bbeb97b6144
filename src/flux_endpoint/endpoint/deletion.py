"""Deletes an endpoint on this machine: only files of its own, and nothing while it runs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flux_endpoint.endpoint.config import declares_multi_user, parse_config
from flux_endpoint.endpoint.directory import AgentLock, EndpointDirectory
from flux_endpoint.endpoint.journal import open_counts
from flux_endpoint.endpoint.multi_user.config import FILES
from flux_endpoint.endpoint.registration import read_endpoint_id
from flux_endpoint.endpoint.task_files import is_of_task
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.errors import ConfigurationError, FluxEndpointError, RecordError

#: Names of the files that programs of this project write into an endpoint's directory.
_OWN = re.compile(
    r"config\.yaml|endpoint\.json|token\.json|status\.json|agent\.lock"
    r"|journal\.db(-wal|-shm|\.damaged.*)?|(endpoint|output)\.log(\.1)?|audit\.jsonl(\.\d+)?"
    r"|\..+\.partial|engine"
)
#: Removed last: until then a second deletion finds the endpoint.
_LAST = ("config.yaml", "agent.lock")


@dataclass
class Deletion:
    """The files that the deletion of an endpoint removes on this machine, and those that stay.

    Attributes:
        directory: the endpoint's directory.
        endpoint_id: its id at the service; `None`: it was never registered.
        started_by: id of the multi-user endpoint that starts it; `None`: there is none.
        own: paths to remove: files of the project's programs.
        of_tasks: paths to remove: directories and output files that are named after tasks.
        kept: paths that stay, since others made them.
        working: the directory in which its tasks run.
        open_tasks: number of unfinished tasks in its journal.
        unsent: number of results in its journal that the broker has not confirmed.
        problems: what could not be read.
    """

    directory: EndpointDirectory
    endpoint_id: str | None = None
    started_by: str | None = None
    own: list[Path] = field(default_factory=list)
    of_tasks: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    working: Path = Path()
    open_tasks: int = 0
    unsent: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the files that are removed."""
        return sum(_size(path) for path in (*self.own, *self.of_tasks))


def plan_deletion(directory: EndpointDirectory) -> Deletion:
    """Return what the deletion of an endpoint would remove.

    Raises:
        NotFoundError: there is no such endpoint.
        FluxEndpointError: its directory can't be read.
    """
    directory.require()
    found = Deletion(directory, started_by=directory.started_by())
    try:
        found.endpoint_id = read_endpoint_id(directory.identity)
    except ConfigurationError as error:
        found.problems.append(str(error))
    try:
        if directory.journal.exists():
            found.open_tasks, found.unsent = open_counts(directory.journal)
    except RecordError as error:
        found.problems.append(str(error))
    found.working = _working_directory(directory)
    try:
        _sort(found)
    except OSError as error:
        raise FluxEndpointError(f"can't read {error.filename}: {error.strerror}") from error
    return found


def _sort(found: Deletion) -> None:
    home, working = found.directory.path, found.working
    for path in sorted(home.iterdir()):
        if _OWN.fullmatch(path.name) or path.name in FILES:
            found.own.append(path)
        elif path == working or path in working.parents:
            continue
        elif home == working and is_of_task(path.name):
            found.of_tasks.append(path)
        else:
            found.kept.append(path)
    if Path(os.path.realpath(home)) not in Path(os.path.realpath(working)).parents:
        # Elsewhere, other endpoints and people may have files, also with such names.
        found.kept += [working] if working != home and working.exists() else []
        return
    for path in _entries(working):
        (found.of_tasks if is_of_task(path.name) else found.kept).append(path)


def delete(directory: EndpointDirectory) -> Deletion:
    """Remove the files of an endpoint; the rest of its directory stays.

    Returns:
        What was removed.

    Raises:
        NotFoundError: there is no such endpoint.
        FluxEndpointError: it runs, or a file can't be removed; then run it again.
    """
    directory.require()
    with AgentLock(directory):
        found = plan_deletion(directory)
        last = [path for path in found.own if path.name in _LAST]
        first = [path for path in found.own if path.name not in _LAST]
        try:
            for path in (*found.of_tasks, *first, *sorted(last, reverse=True)):
                _remove(path)
        except OSError as error:
            raise FluxEndpointError(
                f"can't remove {error.filename}: {error.strerror}. What is left of the endpoint is "
                f"in {directory.path}: run the command again"
            ) from error
    for path in (found.working, directory.path):
        if path == directory.path or directory.path in path.parents:
            with contextlib.suppress(OSError):  # it has other files
                path.rmdir()
    return found


def _working_directory(directory: EndpointDirectory) -> Path:
    """Return the directory in which the endpoint's tasks run."""
    config = FluxEngineConfig()
    with contextlib.suppress(OSError, UnicodeDecodeError, ConfigurationError):
        text = directory.config.read_text(encoding="utf-8")
        if not declares_multi_user(text):
            config = parse_config(text, source="").engine
    return Path(os.path.normpath(directory.path / config.working_dir))


def _entries(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from sorted(directory.iterdir())


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a directory; links are not followed."""
    total, waiting = 0, [path]
    while waiting:
        each = waiting.pop()
        with contextlib.suppress(OSError):
            total += each.lstat().st_size
            if each.is_dir() and not each.is_symlink():
                waiting += each.iterdir()
    return total
