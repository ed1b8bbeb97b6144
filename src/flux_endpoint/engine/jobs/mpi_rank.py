"""Runs one rank of a program under an MPI launcher, as Flux's job shell would.

The launcher runs it as `python -I -S mpi_rank.py PROGRAM [ARGUMENT...]`. Launchers do not set
Flux's variables, and differ in how they treat a rank that can't be started, fails or is killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import sys

#: Flux's variables, and the launchers' equivalents.
_VARIABLES = {
    "FLUX_TASK_RANK": ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"),
    "FLUX_TASK_LOCAL_ID": ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "FLUX_JOB_SIZE": ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"),
}
#: Node and gpus of each of the job's slots, set by the embedded executor: `0:0,1;1:0,1`.
_SLOTS = "FLUX_ENDPOINT_LOCAL_SLOTS"
#: Prefix of a file whose suffix is the number of the signal that killed a rank.
KILLED = "FLUX_ENDPOINT_KILLED"
#: Descriptors of the launcher's own standard output and error, inherited by the ranks.
OUTPUT = "FLUX_ENDPOINT_OUTPUT"
#: Signals that are sent to the whole process group, and so reach the program directly.
_FOR_THE_PROGRAM = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)
#: Signals that Python ignores by default.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def rank_variables(environment: dict[str, str]) -> dict[str, str]:
    """Return Flux's variables of a rank, from those of its launcher."""
    found = {}
    for ours, theirs in _VARIABLES.items():
        value = next((environment[name] for name in theirs if environment.get(name)), None)
        if value is not None:
            found[ours] = value
    return {**found, **_place(environment, found)}


def _place(environment: dict[str, str], rank: dict[str, str]) -> dict[str, str]:
    """Return node and gpus of a rank: those of its slot; ranks that share slots spread evenly."""
    slots = [slot.partition(":") for slot in environment.get(_SLOTS, "").split(";") if slot]
    number, size = int(rank.get("FLUX_TASK_RANK", "0")), int(rank.get("FLUX_JOB_SIZE", "1"))
    if size > len(slots):
        number = number * len(slots) // size
    if number >= len(slots):
        return {}
    node, _, gpus = slots[number]
    place = {"FLUX_ENDPOINT_LOCAL_NODE": node}
    return {**place, "CUDA_VISIBLE_DEVICES": gpus} if gpus else place


def end_others(code: int) -> None:
    """Make the launcher, or Flux's job shell, end all ranks, since this one failed with `code`.

    Does nothing where ranks are not started by PMI's simple protocol: other launchers end the
    ranks of a failed one by themselves.
    """
    with contextlib.suppress(ValueError, KeyError, OSError):
        descriptor = int(os.environ["PMI_FD"])
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):  # the program may have closed it
            os.write(descriptor, f"cmd=abort exitcode={code}\n".encode())


def _write_past_launcher() -> None:
    """Write to the launcher's own output: after an abort it loses output that it has to forward."""
    with contextlib.suppress(KeyError, ValueError, OSError):
        out, err = map(int, os.environ.pop(OUTPUT).split())
        os.fstat(err)  # some launchers do not pass it on
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)


def _start(arguments: list[str]) -> int:
    """Start the program with the original signal settings; return its process id."""
    environment = {**os.environ, **rank_variables(dict(os.environ))}
    ours = [s for s in _FOR_THE_PROGRAM if signal.getsignal(s) is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, signal.SIG_IGN)
    default = [*ours, *_IGNORED_BY_PYTHON]
    try:
        return os.posix_spawnp(arguments[0], arguments, environment, setsigdef=default)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        # A script without an interpreter line: run it with a shell, as everywhere.
        arguments = ["/bin/sh", *arguments]
        return os.posix_spawn(arguments[0], arguments, environment, setsigdef=default)


def main(arguments: list[str]) -> int:
    """Run the program; return the code to exit with."""
    _write_past_launcher()
    try:
        pid = _start(arguments)
    except OSError as error:
        sys.stderr.write(f"start failed: {arguments[0]}: {error.strerror}\n")
        code = 127 if error.errno == errno.ENOENT else 126
    else:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        return 0
    if code < 0:
        with contextlib.suppress(KeyError, OSError):
            os.close(os.open(f"{os.environ[KILLED]}.{-code}", os.O_CREAT | os.O_WRONLY, 0o600))
        code = 128 - code
    end_others(code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
