"""How tasks are submitted: by an Executor, or by a view of it that has resources of its own."""

from __future__ import annotations

import json
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor as FuturesExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from flux_endpoint.client.backlog import PendingTask, SubmissionRoute
from flux_endpoint.client.bulk import TaskGroup, submit_bulk
from flux_endpoint.client.checks import checked_resources, is_int
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.ids import UuidLike, as_uuid
from flux_endpoint.client.mapping import calls_of, map_calls
from flux_endpoint.client.needs import NO_NEEDS, Needs, collected_inputs, take_after
from flux_endpoint.client.registry import FunctionRegistration, serialize_call
from flux_endpoint.data import StoredData
from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_endpoint.protocol.run_options import (
    RUN_OPTIONS,
    RunOptions,
    check_for_job,
    parse_run_options,
)
from flux_endpoint.serialize import ComputeSerializer

if TYPE_CHECKING:
    from flux_endpoint.client.executor import Executor


_MPI_WITHOUT_RESOURCES = (
    "an MPIFunction is submitted without a resource_specification: its command runs once, on one "
    "worker, and no MPI launcher starts it. Set e.g. executor.resource_specification = "
    '{"num_nodes": 2, "ranks_per_node": 4}'
)


_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def value_of(future: ComputeFuture[_Result] | StoredData[_Result]) -> _Result:
    """Return the future itself, as what it stands for among a task's arguments: its result.

    Only for type checkers, which find by it that `executor.submit(mean, value_of(numbers))` is
    right; it is needed nowhere else.

    Args:
        future: the future of another task, or the handle of stored data.
    """
    return cast(_Result, future)


class Submitting(FuturesExecutor):
    """The methods that submit tasks, for an Executor and its views."""

    _resource_specification: dict[str, Any] | None
    _warned_of_mpi: bool = False
    #: JSON of what differs from the defaults of `RunOptions`; empty: nothing.
    _run_options: str = ""

    @property
    @abstractmethod
    def _executor(self) -> Executor:
        """The Executor that submits."""

    # For type checkers: a wrong argument of a function is found, and its future has its type.
    @overload
    def submit(self, fn: ShellFunction, /, *args: Any, **kwargs: Any) -> ComputeFuture[Any]: ...
    @overload
    def submit(
        self,
        fn: Callable[..., _Result],
        /,
        *args: Any,
        after: Sequence[ComputeFuture[Any]],
        **kwargs: Any,
    ) -> ComputeFuture[_Result]: ...
    @overload
    def submit(
        self,
        fn: Callable[_Parameters, _Result],
        /,
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> ComputeFuture[_Result]: ...

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ComputeFuture[Any]:
        """Run `fn(*args, **kwargs)` on the endpoint.

        The function and its arguments are serialized at once, so later changes don't affect the
        task. A function is serialized again only if it may have changed. Another thread makes all
        requests. This method waits only while the backlog of unsent tasks is full.

        A future anywhere in the arguments stands for its result: the task waits at the service, and
        starts when the other task has succeeded, even if this program has ended by then. With
        `after=[future, …]` it waits without taking the results (unless `fn` has a parameter of
        that name). If a task that it waits for fails, it fails with `DependencyFailed`.

        Args:
            fn: the function.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.

        Returns:
            The future of the call.

        Raises:
            SerializationError: the function or its arguments can't be serialized, or are too large.
            TypeError: `fn` is not callable, or is a command function and an argument is missing.
            ValueError: no endpoint is set, `after` has too many futures, or the command of `fn`
                can't be formatted.
            RuntimeError: the Executor is shut down.
        """
        own, resources = self._executor, self._resource_specification
        own._refuse_if_shut_down()
        route = own._route(resources, self._run_options)
        if not resources and isinstance(fn, MPIFunction) and not own._warned_of_mpi:
            own._warned_of_mpi = True
            warnings.warn(_MPI_WITHOUT_RESOURCES, stacklevel=2)
        after = take_after(fn, kwargs, ComputeFuture)
        if isinstance(fn, ShellFunction):
            fn.check_call(args, kwargs)
        serializer = own.serializer
        function = own._functions.prepare(fn, serializer)
        return self._put(route, function, serializer, args, kwargs, after=after)

    def submit_to_registered_function(
        self,
        function_id: UuidLike,
        args: tuple[Any, ...] | list[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> ComputeFuture:
        """Run a registered function on the endpoint.

        Args:
            function_id: the function's id.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.

        Returns:
            The future of the call.

        Raises:
            SerializationError: the arguments can't be serialized, or are too large.
            ValueError: `function_id` is not a UUID, or no endpoint is set.
            TypeError: `args` is not a tuple or list, or `kwargs` not a dictionary; or the function
                is a command function that was registered here and an argument is missing.
            RuntimeError: the Executor is shut down.
        """
        own = self._executor
        own._refuse_if_shut_down()
        if not isinstance(args, tuple | list | None):
            raise TypeError(f"args must be a tuple or a list, got {type(args).__name__}")
        if not isinstance(kwargs, dict | None):
            raise TypeError(f"kwargs must be a dictionary, got {type(kwargs).__name__}")
        known = str(as_uuid(function_id, "function_id"))
        own.client._commands.check(known, args or (), kwargs or {})
        function = FunctionRegistration(known, function_id=known)
        route = own._route(self._resource_specification, self._run_options)
        return self._put(route, function, own.serializer, args or (), kwargs or {})

    def using(self, **options: Any) -> ExecutorView:
        """Return a view of the Executor that submits with other resources or options.

        Threads can use several views at a time, each with its own resources and options.

        Args:
            options: keys of a resource specification, and options of a call: `retries`, `retry_on`,
                `retry_delay`, `time_limit`; `stdin` (text, or a `Path` of a file at the endpoint),
                `cwd` (a path there), `env` (variables; `None` unsets one), `hold` (the task waits
                until `future.release()`). They replace those of this Executor or view; `None`
                removes one.

        Raises:
            ResourceSpecificationError: a key is unknown or a value invalid; the text says which.
            RunOptionsError: the value of an option is invalid; the text says which.

        Example:
            large = executor.using(num_nodes=2, walltime="10m")
            future = large.submit(MPIFunction("./simulate {steps}"), steps=100)
            patient = executor.using(retries=3, retry_on=[ConnectionError, "lost"])
            there = executor.using(cwd="/scratch/run-7", stdin="10", env={"LANG": "C"})
        """
        own = {name: options.pop(name) for name in RUN_OPTIONS if name in options}
        given = json.loads(self._run_options or "{}")
        if not own.get("retries", True):  # what belongs to them goes, too
            given = {name: each for name, each in given.items() if not name.startswith("retry_")}
        given |= own
        parsed = parse_run_options(given)
        resources = _merged(self._resource_specification, options)
        if resources:
            check_for_job(parsed, resources)
        return ExecutorView(self._executor, resources, _as_text(parsed))

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **named: Iterable[Any],
    ) -> Iterator[Any]:
        """Run `fn` on the endpoint for all values of the iterables, and yield the results in order.

        Like with the built-in `map`, the arguments of each call are one value of each iterable.
        Iterables with a name are for keyword arguments, such as the fields of a command.

        The first few thousand calls are submitted at once, and another one for each result that is
        taken, so the iterables may be infinite. If `fn` changes meanwhile, later calls run the
        changed function.

        Args:
            fn: the function.
            iterables: one for each positional argument; the shortest one ends the calls.
            named: one for each keyword argument, by its name.
            timeout: seconds from now; then waiting for a result raises `TimeoutError`.
            chunksize: number of calls in each task; more than 1 is faster for very short calls.

        Raises:
            ValueError: `chunksize` is below 1, or above 1 for a command function, which is a task
                of its own; or no endpoint is set.
            TypeError: an argument is not iterable; or `fn` is a command function, and an argument
                is positional or one is missing.
            SerializationError: the function or its arguments can't be serialized, or are too large.
            RuntimeError: the Executor is shut down.

        Example:
            convert = ShellFunction("convert {image} -resize {size} small-{image}")
            for done in executor.map(convert, image=images, size=itertools.repeat("200x200")):
                print(done.returncode)
        """
        if not is_int(chunksize) or chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, got {chunksize!r}")
        if isinstance(fn, ShellFunction):
            fn.check_call(iterables, named)
            if chunksize > 1:
                raise ValueError(
                    f"chunksize must be 1: each command of {fn.__name__} is a task of its own"
                )
        return map_calls(self.submit, fn, iterables, named, timeout=timeout, chunksize=chunksize)

    def bulk_submit(
        self, fn: Callable[..., Any], /, *iterables: Iterable[Any], **named: Iterable[Any]
    ) -> TaskGroup:
        """Run `fn` on the endpoint for all values of the iterables, as a task group of its own.

        For very many calls: no future is made until it is asked for, a call costs 21 bytes here
        afterwards, and up to 2,048 calls are one request. The arguments are as for `map`. The
        method returns when the service has all calls. Meanwhile the iterables are read only as fast
        as the service takes them; while it has no room for more of the user's tasks, this waits.

        Args:
            fn: the function.
            iterables: one for each positional argument; the shortest one ends the calls.
            named: one for each keyword argument, by its name.

        Returns:
            The calls, a lazy sequence of their futures. At its shutdown, the Executor waits until
            all have ended.

        Raises:
            TypeError: an argument is not iterable, or `fn` is not callable; or it is a command
                function, and an argument is positional or one is missing.
            ValueError: no endpoint is set, no iterable is given, or the Executor has a `cache`,
                which bulk submissions don't use.
            SerializationError: `fn` or arguments can't be serialized, or are too large.
            ServiceError: the service refuses the calls.
            ServiceUnreachableError: the service could not be reached for `give_up_after` seconds.
            DependencyFailed: a future among the arguments has no task.
            RuntimeError: the Executor is shut down, or this is a callback of a future.

            After an error or Ctrl-C, calls that were submitted before run. A note of the error has
            their number and their group.

        Example:
            group = executor.bulk_submit(simulate, range(100_000))
            best = max(group.results())
        """
        own = self._executor
        own._refuse_if_shut_down()
        if own.cache is not False:
            raise ValueError("bulk_submit does not use the cache: call it on an Executor without")
        if not iterables and not named:
            raise ValueError("bulk_submit needs at least one iterable: its length is that of calls")
        route = own._route(self._resource_specification, self._run_options)
        calls = calls_of(iterables, named)
        if isinstance(fn, ShellFunction):
            fn.check_call(iterables, named)
            calls = _checked(calls, fn)
        function = own._functions.prepare(fn, own.serializer)
        return submit_bulk(own, route, function, calls)

    def _put(
        self,
        route: SubmissionRoute,
        function: FunctionRegistration,
        serializer: ComputeSerializer,
        args: Any,
        kwargs: Mapping[str, Any],
        *,
        after: Sequence[ComputeFuture] = (),
    ) -> ComputeFuture:
        own = self._executor
        with collected_inputs() as inputs:
            payload = serialize_call(
                serializer, function.name, args, kwargs, may_be_command=function.may_be_command
            )
        needs = Needs(tuple(inputs), tuple(after)) if inputs or after else NO_NEEDS
        for each in needs:
            if each._events is not own._streams:  # another Executor submits it
                each.wait_submitted()
        future = ComputeFuture(task_group_id=route.task_group_id, endpoint_id=route.endpoint_id)
        own._read_with(future, serializer)
        key = "" if needs else own._key_of_call(route, function, payload)
        own._submitter.put(PendingTask(future, route, function, payload, needs, key))
        return future


class ExecutorView(Submitting):
    """Submits tasks of an Executor with other resources or options; it never changes.

    Everything else is the Executor's, as it is at each submission: endpoint, task group,
    serializers. The Executor waits for the tasks, and is shut down itself.

    Args:
        executor: the Executor.
        resources: the resource specification of each task; `None`: functions run on workers.
        run_options: the options of each task, JSON of what differs from the defaults.

    Raises:
        ResourceSpecificationError: it has an invalid key or value.
        TypeError: JSON can't hold it.
    """

    def __init__(
        self, executor: Executor, resources: Mapping[str, Any] | None, run_options: str = ""
    ) -> None:
        self._owner = executor
        self._run_options = run_options
        self._resource_specification = checked_resources(resources)

    if TYPE_CHECKING:
        # With ranks, the result of a function is the list of their values: its type is unknown.
        @overload
        def submit(self, fn: ShellFunction, /, *args: Any, **kwargs: Any) -> ComputeFuture[Any]: ...
        @overload
        def submit(
            self,
            fn: Callable[..., Any],
            /,
            *args: Any,
            after: Sequence[ComputeFuture[Any]],
            **kwargs: Any,
        ) -> ComputeFuture[Any]: ...
        @overload
        def submit(
            self,
            fn: Callable[_Parameters, Any],
            /,
            *args: _Parameters.args,
            **kwargs: _Parameters.kwargs,
        ) -> ComputeFuture[Any]: ...
        def submit(  # noqa: D102 - as that of Submitting
            self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
        ) -> ComputeFuture[Any]: ...

    def __repr__(self) -> str:
        using = {**(self._resource_specification or {}), **json.loads(self._run_options or "{}")}
        return f"<{type(self).__name__} of {self._owner!r} with {using or None}>"

    @property
    def _executor(self) -> Executor:
        return self._owner

    @property
    def resource_specification(self) -> dict[str, Any] | None:
        """Resources of each task; a copy."""
        given = self._resource_specification
        return None if given is None else dict(given)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the tasks are the Executor's."""


def _checked(
    calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]], fn: ShellFunction
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for args, kwargs in calls:
        fn.check_call(args, kwargs)
        yield args, kwargs


def _as_text(options: RunOptions) -> str:
    given = options.as_json()
    return json.dumps(given) if given else ""


def _merged(
    resources: Mapping[str, Any] | None, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return a resource specification with some values replaced; `None` removes a value."""
    values = {**(resources or {}), **options}
    return {key: value for key, value in values.items() if value is not None} or None
