"""This machine: limits, disks, the state directory, and required programs."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from flux_endpoint import __version__, extras, paths
from flux_endpoint.cli.checks.finding import Finding, failed, guarded, ok, skipped, warning
from flux_endpoint.cli.table import shown_bytes
from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.engine.jobs.plan import find_mpiexec
from flux_endpoint.errors import ConfigurationError
from flux_endpoint.protocol.operations import LEAST_FREE_BYTES

#: Limits for open files: below the first little works, below the second not much.
FEWEST_FILES, ENOUGH_FILES = 256, 1024
#: Limits for free bytes on a disk: below the first it is practically full.
LEAST_DISK, ENOUGH_DISK = LEAST_FREE_BYTES, 1 << 30
#: The least number of files that a file system should have room for.
LEAST_INODES = 1000


def check_machine(endpoints: Sequence[EndpointDirectory]) -> Iterator[Finding]:
    """Yield the findings on this machine, which has these endpoints."""
    yield ok(
        "machine.release",
        f"flux-endpoint {__version__}, Python {platform.python_version()}, {platform.platform()}",
    )
    yield from guarded("machine", _home)
    yield _open_files()
    yield _temporary()
    yield _mpiexec(needed=bool(endpoints))
    yield _service_extra()


def _home() -> Iterator[Finding]:
    try:
        home = paths.home()
        listed = [each.name for each in home.iterdir()]
    except ConfigurationError as error:
        yield failed("machine.home", str(error), f"mkdir, chown, or another {paths.HOME_VARIABLE}")
        return
    except OSError as error:
        yield failed(
            "machine.home",
            f"{error.filename} can't be read: {error.strerror}",
            f"make it yours (chown, chmod), or set {paths.HOME_VARIABLE} to another directory",
        )
        return
    yield check_private("machine.home", home)
    if "endpoints" in listed and not (home / "endpoints").is_dir():
        yield failed(
            "machine.home",
            f"{home / 'endpoints'} is no directory: no endpoint is found",
            "move it away",
        )
    yield check_disk("machine.disk", home, "state")
    if not os.access(home, os.W_OK | os.X_OK):
        yield failed(
            "machine.home",
            f"{home} can't be written",
            f"make it yours (chown), or set {paths.HOME_VARIABLE} to another directory",
        )


def _temporary() -> Finding:
    try:
        directory = Path(tempfile.gettempdir())
    except OSError as error:
        mend = "make room in /tmp, or set TMPDIR to a directory of yours"
        return failed("machine.disk", error.strerror or str(error), mend)
    return check_disk("machine.disk", directory, "temporary files")


def check_private(check: str, path: Path, subject: str | None = None) -> Finding:
    """Return whether only this user can access a directory or file."""
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid():
        return failed(
            check,
            f"{path} belongs to the user with id {status.st_uid}, you are {os.geteuid()}",
            f"use your own: chown, or set {paths.HOME_VARIABLE} to a directory of yours",
            subject,
        )
    if mode & 0o077:
        kind = "700" if path.is_dir() else "600"
        return warning(
            check,
            f"{path} is open to other users (mode {mode:04o})",
            f"chmod {kind} {shlex.quote(str(path))}",
            subject,
        )
    return ok(check, f"{path} is yours alone", subject)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = f"a process may have {soft} files open"
    mend = (
        f"ulimit -n {min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536} in the shell "
        "that starts things, LimitNOFILE= in a unit of systemd, or /etc/security/limits.conf"
    )
    if soft == resource.RLIM_INFINITY or soft >= ENOUGH_FILES:
        return ok("machine.open_files", said)
    if soft < FEWEST_FILES:
        return failed("machine.open_files", said, mend)
    return warning("machine.open_files", f"{said}: few for many workers or clients", mend)


def check_disk(check: str, directory: Path, what: str, subject: str | None = None) -> Finding:
    """Return whether the disk of a directory, which may not exist yet, has room.

    Args:
        check: the name of the check.
        directory: the directory; need not exist.
        what: what is stored there, for the text.
        subject: the endpoint's name, if it is an endpoint's.
    """
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    inodes = os.statvfs(directory)
    said = f"{shown_bytes(free)} free for {what} ({directory})"
    mend = "make room there: journals, results and logs are written to it"
    if free < LEAST_DISK:
        return failed(check, said, mend, subject)
    if inodes.f_files and inodes.f_favail < LEAST_INODES:
        return failed(
            check, f"room for {inodes.f_favail} more files only in {directory}", mend, subject
        )
    if free < ENOUGH_DISK:
        return warning(check, said, mend, subject)
    return ok(check, said, subject)


def _mpiexec(*, needed: bool) -> Finding:
    found = find_mpiexec()
    if found is not None:
        return ok("machine.mpiexec", f"mpiexec is {found}")
    if not needed or os.environ.get("FLUX_URI"):
        return skipped(
            "machine.mpiexec", "there is no mpiexec; only an endpoint outside of Flux would need it"
        )
    return warning(
        "machine.mpiexec",
        "there is no mpiexec: outside of Flux, tasks can't have more ranks than one",
        f"{extras.install_command('mpi')} (or apt-get install mpich); a Flux instance needs none",
    )


def _service_extra() -> Finding:
    missing = extras.missing("service")
    if not missing:
        return ok("machine.service_extra", "the packages of the service are installed")
    return skipped(
        "machine.service_extra",
        f"no service runs from here: {', '.join(missing)} not installed "
        f"({extras.install_command('service')})",
    )
