"""Turns the end of a job into the task's value."""

from __future__ import annotations

import base64
import json
import os
import re
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import dill

from flux_endpoint.engine.jobs.exchange import ranks_that_ended, read_rank, read_usage
from flux_endpoint.engine.jobs.plan import CommandPlan, RanksPlan
from flux_endpoint.engine.outcome import TIMEOUT_EXPIRED, Finished
from flux_endpoint.engine.task import Failure, Value, checked_size
from flux_endpoint.errors import SerializationError
from flux_endpoint.functions import ShellResult
from flux_endpoint.functions.room import lacks_room
from flux_endpoint.functions.snippet import last_lines, snippet_limit
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.serialize import ComputeSerializer, DillDataBase64
from flux_endpoint.usage import Usage

#: Number of lines of standard error that a failed task shows.
_SHOWN_LINES = 30
#: The most ranks without a value that an error names.
_SHOWN_RANKS = 100
#: The most bytes of each output stream of a Python function's ranks that are kept.
_PRINTED_LINES = 1000
_PRINTED_BYTES = 1 << 18
#: How MPICH (and its derivatives) and OpenMPI report the code that a rank gave to `MPI_Abort`.
_ABORT_CODE = re.compile(r"^Abort\((-?\d+)\) on node \d+|\bwith errorcode (-?\d+)", re.MULTILINE)


def collect(
    plan: CommandPlan | RanksPlan,
    outcome: Finished,
    result_serializers: list[str] | None,
    starts: tuple[int, int],
) -> Value | Failure:
    """Return the value or failure of a task whose job has finished.

    Args:
        plan: the job's plan.
        outcome: how the job ended.
        result_serializers: strategies that the submitter asked for.
        starts: sizes of the output files before the job, in bytes.
    """
    if isinstance(plan, CommandPlan):
        return _command(plan, outcome, result_serializers, starts)
    return _ranks(plan, outcome)


def _command(
    plan: CommandPlan,
    outcome: Finished,
    result_serializers: list[str] | None,
    starts: tuple[int, int],
) -> Value | Failure:
    lines, limit = plan.function.snippet_lines, snippet_limit(plan.command)
    return shell_result(
        plan.command,
        _tail(plan.stdout, starts[0], lines, limit),
        _tail(plan.stderr, starts[1], lines, limit) + _lacking_room(plan),
        outcome,
        result_serializers,
        return_dict=plan.function.return_dict,
        result_type=plan.function.result_type,
    )


def shell_result(
    command: str,
    stdout: str,
    stderr: str,
    outcome: Finished,
    result_serializers: list[str] | None,
    *,
    return_dict: bool = False,
    result_type: type[ShellResult] = ShellResult,
) -> Value | Failure:
    """Return a serialized `ShellResult`; Flux's note on the end is appended to standard error.

    Args:
        command: the command line for the result.
        stdout: the last lines of standard output.
        stderr: the last lines of standard error.
        outcome: how the job ended.
        result_serializers: strategies to try, in order; `None`: the defaults.
        return_dict: whether the value is a dictionary instead.
        result_type: the class of the value: ours, or the official one.
    """
    outcome = with_abort_code(outcome, stderr)
    if outcome.note and outcome.note not in stderr:
        stderr += ("" if not stderr or stderr.endswith("\n") else "\n") + f"{outcome.note}\n"
    result = result_type(command, stdout, stderr, outcome.returncode, outcome.exception_name)
    value = vars(result) if return_dict else result
    try:
        data = ComputeSerializer.serialize_result(value, result_serializers)
        return checked_size(data, outcome.returncode)
    except SerializationError as error:
        return Failure(ErrorCode.COULD_NOT_EXECUTE, str(error))


def printed(plan: RanksPlan) -> bytes:
    """Return the last lines of output of a Python function's ranks."""
    streams = (
        _tail(path, 0, _PRINTED_LINES, _PRINTED_BYTES) for path in (plan.stdout, plan.stderr)
    )
    return "".join(streams).encode("utf-8", "replace")


def with_abort_code(outcome: Finished, stderr: str) -> Finished:
    """Return `outcome` with the code of the `MPI_Abort` that ended the job, if one did.

    Flux does not report it, but MPI does on standard error; as an exit code it has 8 bits.
    """
    found = _ABORT_CODE.search(stderr) if outcome.aborted else None
    if found is None:
        return outcome
    return replace(outcome, returncode=int(found[1] or found[2]) & 0xFF or outcome.returncode)


def _ranks(plan: RanksPlan, outcome: Finished) -> Value | Failure:
    # Iterate over the existing files: the task may set the number of ranks to anything.
    ends = {
        rank: read_rank(plan.directory, rank)
        for rank in ranks_that_ended(plan.directory)
        if rank < plan.ranks
    }
    for rank, end in ends.items():
        if isinstance(end, Failure):
            text = f"Exception on rank {rank} of {plan.ranks}:\n{end.text}"
            return replace(end, text=text)
    values = [end.data for end in ends.values() if isinstance(end, Value)]
    if len(values) == plan.ranks and outcome.returncode == 0:
        return _joined(values)
    stderr = _tail(plan.stderr, 0, _SHOWN_LINES, 1 << 16)
    outcome = with_abort_code(outcome, stderr)
    without = (str(rank) for rank in range(plan.ranks) if ends.get(rank) is None)
    missing = ", ".join(islice(without, _SHOWN_RANKS)) or "none"
    if (left := plan.ranks - len(values) - _SHOWN_RANKS) > 0:
        missing += f" and {left} more"
    what = (
        "its walltime ran out"
        if outcome.exception_name == TIMEOUT_EXPIRED
        else f"the job ended with return code {outcome.returncode}"
    )
    return Failure(
        ErrorCode.REMOTE_EXECUTION,
        f"The function did not end on every rank: {what}. {outcome.note}\n"
        f"ranks without a value: {missing}\n{stderr}{_lacking_room(plan)}",
    )


def usage_of_ranks(plan: RanksPlan) -> Usage | None:
    """Return what the ranks of a Python function have used that have ended their task."""
    ranks = (rank for rank in ranks_that_ended(plan.directory) if rank < plan.ranks)
    return Usage.total(
        usage for rank in ranks if (usage := read_usage(plan.directory, rank)) is not None
    )


class _Pickled:
    """A value in a list that is not unpickled here: the reader's `dill` unpickles it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return dill.loads, (self._data,)


def _joined(values: list[str]) -> Value | Failure:
    """Return a list of serialized values as one value, without deserializing users' data."""
    identifiers = {value[:3] for value in values}
    if identifiers <= {"00\n", "01\n"}:
        parts = [_Pickled(base64.b64decode(value[3:])) for value in values]
        return checked_size(DillDataBase64().serialize(parts))
    if identifiers == {"11\n"}:
        return checked_size("11\n" + json.dumps([json.loads(value[3:]) for value in values]))
    return Failure(
        ErrorCode.COULD_NOT_EXECUTE,
        "the values of several ranks can be joined only if all were serialized with "
        "DillDataBase64, or all with JSONData; ask for one of these as the result serializer",
    )


def _lacking_room(plan: CommandPlan | RanksPlan) -> str:
    """Return a line that says so if the disk is full where the job writes, else ""."""
    for path in (plan.stdout, plan.stderr):
        with suppress(OSError):  # nothing was written to this file
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                if note := lacks_room(path, descriptor):
                    return note
            finally:
                os.close(descriptor)
    return ""


def _tail(path: Path, start: int, lines: int, limit: int) -> str:
    try:
        # Opening a named pipe could block: its other end may never be opened.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        return last_lines(descriptor, start, lines, limit)
    finally:
        os.close(descriptor)
