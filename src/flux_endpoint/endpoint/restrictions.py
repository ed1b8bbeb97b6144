"""Restricts the tasks of an endpoint that runs chosen functions only (`allowed_functions`).

Such a task is one of the functions that the endpoint's owner has chosen, and data. So its arguments
are read as data, values in a command are quoted, and its resource specification may only have keys
that set amounts, times and places: none with options, files or programs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from flux_endpoint.engine.base import EngineTask
from flux_endpoint.errors import DeserializationError, FluxEndpointError
from flux_endpoint.functions import (
    formatted_task,
    is_command,
    is_plain_json,
    read_arguments,
    read_command,
)
from flux_endpoint.functions.fields import quoting_fields
from flux_endpoint.protocol.run_options import RunOptions
from flux_endpoint.serialize import DillDataBase64, JSONData, pack_buffers, unpack_buffers

#: Accepted keys of a resource specification.
KEYS = frozenset(
    {
        "num_nodes",
        "ranks_per_node",
        "num_ranks",
        "cores_per_rank",
        "gpus_per_rank",
        "tasks_per_slot",
        "exclusive",
        "walltime",
        "queue",
        "bank",
        "urgency",
        "environment",
        "constraints",
        "dependencies",
        "begin_time",
        "job_name",
    }
)

#: Variables that a specification's `environment` may set: numbers of threads, and their placement.
VARIABLES = frozenset(
    {
        "BLIS_NUM_THREADS",
        "GOMP_CPU_AFFINITY",
        "GOTO_NUM_THREADS",
        "JULIA_NUM_THREADS",
        "KMP_AFFINITY",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "OMP_DISPLAY_ENV",
        "OMP_DYNAMIC",
        "OMP_MAX_ACTIVE_LEVELS",
        "OMP_NUM_THREADS",
        "OMP_PLACES",
        "OMP_PROC_BIND",
        "OMP_SCHEDULE",
        "OMP_STACKSIZE",
        "OMP_THREAD_LIMIT",
        "OMP_WAIT_POLICY",
        "OPENBLAS_NUM_THREADS",
    }
)

_WHERE = "this endpoint runs chosen functions only (allowed_functions)"


class RestrictionError(FluxEndpointError, ValueError):
    """A task contains something that a restricted endpoint does not accept; the text says what."""


def restricted(
    task: EngineTask, variables: Collection[str] = (), programs: Collection[str] = ()
) -> EngineTask:
    """Return a task with its arguments as data, and with its command's values quoted.

    Nothing is unpickled, and no code of the user's runs.

    Args:
        task: a task of an allowed function.
        variables: names that a specification's `environment` may have besides `VARIABLES`.
        programs: programs of commands that treat any argument as data; see `quoting_fields`.

    Raises:
        RestrictionError: it contains more than data.
    """
    if task.attach is not None:
        return task
    accepted = {*VARIABLES, *variables}
    _check_specification(task.resource_specification or {}, accepted)
    if task.options is not None:
        _check_options(task.options, accepted)
    try:
        buffers = unpack_buffers(task.buffer)
    except DeserializationError as error:
        raise RestrictionError(f"the task can't be read: {error}") from None
    if len(buffers) > 3:
        raise RestrictionError(f"an argument is the result of another task: {_WHERE}")
    if len(buffers) != 3:
        raise RestrictionError(
            f"a task is three buffers, function, args and kwargs; this one has {len(buffers)}"
        )
    function, args, kwargs = buffers
    if is_command(task.buffer):
        return replace(task, buffer=_command(function, args, kwargs, programs))
    data = [function, _as_data("args", args), _as_data("kwargs", kwargs)]
    return replace(task, buffer=pack_buffers(data))


def _check_specification(given: Mapping[str, Any], variables: Collection[str]) -> None:
    for key in given:
        if key not in KEYS:
            raise RestrictionError(
                f"resource_specification: {str(key)[:100]!r} can't be used here: {_WHERE}; it "
                f"takes {', '.join(sorted(KEYS))}"
            )
    environment = given.get("environment")
    if isinstance(environment, Mapping):
        _check_variables("resource_specification: environment", environment, variables)


def _check_options(options: RunOptions, variables: Collection[str]) -> None:
    """Refuse an input and a directory: a chosen function may take either for a program's place."""
    for name, value in (("stdin", options.stdin), ("cwd", options.cwd or None)):
        if value is not None:
            raise RestrictionError(
                f"{name} can't be set here: {_WHERE}, each as it was registered; pass data as "
                "arguments"
            )
    _check_variables("env", options.env, variables)


def _check_variables(what: str, given: Mapping[str, Any], variables: Collection[str]) -> None:
    for name in given:
        if name not in variables:
            raise RestrictionError(
                f"{what}[{str(name)[:100]!r}] can't be set here: {_WHERE}; it takes "
                f"{', '.join(sorted(variables))}"
            )


def _command(function_buffer: str, args: str, kwargs: str, programs: Collection[str]) -> str:
    """Return a command task with its values quoted in its command."""
    function = read_command(function_buffer)
    if function is None:
        raise RestrictionError(f"the command function has parts that are code; {_WHERE}")
    positional, named = _read("args", args), _read("kwargs", kwargs)
    if not isinstance(named, dict) or not all(isinstance(key, str) for key in named):
        raise RestrictionError("kwargs must be a dictionary with text as keys")
    try:
        function.check_paths()
        with quoting_fields(programs):
            return formatted_task(function, positional, named)
    except (TypeError, ValueError) as error:
        raise RestrictionError(str(error)) from None


def _as_data(which: str, buffer: str) -> str:
    """Return a buffer of arguments that a worker reads as data, in this package's encoding."""
    if buffer.startswith(JSONData.identifier):
        return buffer
    value = _read(which, buffer)
    strategy = JSONData if is_plain_json(value) else DillDataBase64
    return strategy.instance().serialize(value)


def _read(which: str, buffer: str) -> Any:
    try:
        return read_arguments(buffer)
    except (DeserializationError, ValueError, TypeError, RecursionError) as error:
        kinds = ", ".join(_names())
        raise RestrictionError(
            f"the {which} of the call are not plain data ({str(error)[:300]}): {_WHERE}, with "
            f"arguments of these kinds: {kinds}, from an Executor without a store. Large ones are "
            "best sent as JSON: ComputeSerializer(strategy_data=JSONData())"
        ) from None


def _names() -> Iterator[str]:
    yield from ("None", "bool", "int", "float", "str", "bytes", "tuple", "list", "set", "dict")
