"""`Executor`: submits many functions and resolves each future as soon as its result arrives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

from flux_endpoint.client.backlog import PendingTask, SubmissionRoute
from flux_endpoint.client.bulk import TaskGroup, existing_group, open_groups
from flux_endpoint.client.checks import (
    checked_batch_size,
    checked_seconds,
    refuse_unknown,
)
from flux_endpoint.client.client import Client, hardware_source
from flux_endpoint.client.executor_settings import ExecutorSettings, serializer_with
from flux_endpoint.client.exits import close_with_executor
from flux_endpoint.client.fork import Birthplace
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.ids import UuidLike, as_uuid
from flux_endpoint.client.registry import (
    FunctionRegistration,
    FunctionRegistry,
)
from flux_endpoint.client.reloading import reload_group
from flux_endpoint.client.streams import Streams
from flux_endpoint.client.submitter import Submitter
from flux_endpoint.client.submitting import Submitting
from flux_endpoint.client.threads import on_client_thread
from flux_endpoint.data import DataStore
from flux_endpoint.logs import event
from flux_endpoint.notebook import table
from flux_endpoint.protocol.exceptions import RemoteErrors
from flux_endpoint.protocol.jobid import parse_jobid
from flux_endpoint.serialize import ComputeSerializer, Strategylike

log = logging.getLogger(__name__)

#: Requests to an unreachable service are retried for this time (s) before tasks fail.
GIVE_UP_AFTER = 600.0


class Executor(ExecutorSettings, Submitting):
    """Runs functions on an endpoint; a `concurrent.futures.Executor`.

    Use it in a `with` statement, or call `shutdown` at the end. The end of the `with` block waits
    for all results, unless an exception leaves the block.

    All arguments are also attributes, which may be assigned at any time. An assignment does not
    affect tasks that were submitted before.

    Several threads may share an Executor, but several processes may not: its methods raise
    `RuntimeError` in a forked child, which has to create its own.

    Example:
        with Executor(endpoint_id="4b116d3c-1703-4f8f-9f6f-39921e5864df") as executor:
            future = executor.submit(pow, 2, 10)
            print(future.result())

    Args:
        endpoint_id: the endpoint that runs the tasks: its id, its name on this machine, or its
            name at the service.
        client: client of the service; by default one that uses the environment or the credentials
            file.
        task_group_id: the group of the tasks; by default, all Executors of the same service, user
            and process share one. `reload_tasks` needs the id of the group after a restart.
        resource_specification: resources of each task, e.g. `{"num_nodes": 2}`.
        user_endpoint_config: values for the endpoint's configuration template.
        label: name of this Executor in logs and thread names.
        batch_size: the most tasks in one request.
        amqp_port: port of the message broker; by default the port that the service returns.
        serializer: turns functions and arguments into text; the client uses it too from now on.
        result_serializers: strategies for the endpoint to try on each result, in order.
        give_up_after: requests to an unreachable service are retried for this time (s) before
            tasks fail.
        exceptions: the caller's own exception classes; besides Python's own exceptions, the
            `__cause__` of a `TaskExecutionFailed` may be one of these.
        raise_remote: whether a future raises that cause itself, if there is one; the
            `TaskExecutionFailed` is then its `__cause__`.
        cache: whether a call that succeeded before, with the same function, arguments and settings,
            gets that result instead of being run. A text does the same for calls with the same
            text: change it when something else changes that results depend on, such as data files.
        store: keeps arguments and results that are too large for messages, e.g.
            `flux_endpoint.data.SharedDirectory`; it becomes that of the serializer.
        unknown: `api_burst_limit` and `api_burst_window_s` of the official Executor, which have
            no effect here.

    Raises:
        ValueError: an id is not a UUID, no endpoint has the name, or a number is out of range.
        TypeError: an argument is unknown or has the wrong type.
        ResourceSpecificationError: `resource_specification` has an invalid key or value.
        ConfigurationError: the service's URL or token is missing or invalid.
    """

    def __init__(  # noqa: PLR0917 - the official order
        self,
        endpoint_id: UuidLike | None = None,
        client: Client | None = None,
        task_group_id: UuidLike | None = None,
        resource_specification: Mapping[str, Any] | None = None,
        user_endpoint_config: Mapping[str, Any] | None = None,
        label: str = "",
        batch_size: int = 128,
        amqp_port: int | None = None,
        serializer: ComputeSerializer | None = None,
        result_serializers: Iterable[Strategylike] | None = None,
        *,
        give_up_after: float = GIVE_UP_AFTER,
        exceptions: Iterable[type[Exception]] = (),
        raise_remote: bool = False,
        cache: bool | str = False,
        store: DataStore | None = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self.client = client or Client()
        self.endpoint_id = endpoint_id
        self.task_group_id = task_group_id or self._default_group()
        self.resource_specification = resource_specification
        self.user_endpoint_config = user_endpoint_config
        self.label = label
        if serializer is not None or store is not None:
            self.serializer = serializer_with(serializer or self.serializer, store)
        self._streams = Streams(self.client.api)
        self.amqp_port = amqp_port
        self.result_serializers = result_serializers
        self._remote_errors = RemoteErrors.of(exceptions, are_raised=raise_remote)
        self.cache = cache
        self._functions = FunctionRegistry()
        self._submitter = Submitter(
            self.client.api,
            self._streams,
            label=label,
            batch_size=checked_batch_size(batch_size),
            give_up_after=checked_seconds(give_up_after, "give_up_after"),
        )
        self._birthplace = Birthplace()
        close_with_executor(self, self._submitter)

    def __repr__(self) -> str:
        label = f"{self.label!r}, " if self.label else ""
        return f"<Executor {label}endpoint {self.endpoint_id}, task group {self.task_group_id}>"

    def _repr_html_(self) -> str:
        rows = [
            ("label", self.label or None),
            ("endpoint", self.endpoint_id),
            ("task group", self.task_group_id),
            ("submitted", self.task_count_submitted),
            ("unfinished", self._submitter.open_count),
            ("resources", self.resource_specification),
        ]
        return table(type(self).__name__, rows)

    @property
    def task_count_submitted(self) -> int:
        """Number of tasks that the service has accepted from this Executor."""
        return self._submitter.submitted

    # Functions.

    def register_function(
        self,
        fn: Callable[..., Any],
        function_id: UuidLike | None = None,
        **func_register_kwargs: Any,
    ) -> str:
        """Register `fn` now; otherwise its first submission registers it.

        If `fn` has changed by the time it is submitted, it is registered again, with the defaults
        of `Client.register_function`. A `function_id` given here is used even if `fn` changes.

        Args:
            fn: the function.
            function_id: its id from an earlier registration; no request is made.
            func_register_kwargs: other arguments of `Client.register_function`.

        Returns:
            The function's id.

        Raises:
            ValueError: this Executor has already registered `fn`, unchanged, under another id; or
                `function_id` is not a UUID.
            TypeError: `fn` is not callable.
            SerializationError: `fn` can't be serialized, or is too large.
            RuntimeError: the Executor is shut down.
        """
        self._refuse_if_shut_down("refusing to register function")
        given = None if function_id is None else str(as_uuid(function_id, "function_id"))
        known = self._functions.find(fn)
        if known is not None:
            if given is not None and given == known.function_id:
                return given
            raise ValueError(_registered(known.name, known.function_id, given))
        if given is None:
            register = self.client.api.register
            given = self._functions.register(fn, self.serializer, register, **func_register_kwargs)
        else:
            self._functions.remember(fn, given)
        self.client._commands.add(given, fn)
        return given

    def register_source_code(self, source: str, function_name: str, **kwargs: Any) -> str:
        """Register a function as Python source text.

        Args:
            source: the text; it may define more than the function.
            function_name: name of the function, which the text defines at its top level.
            kwargs: other arguments of `Client.register_source_code`.

        Returns:
            The function's id, for `submit_to_registered_function`.

        Raises:
            ValueError: the text is not valid Python, does not define the function, or was
                registered before.
            RuntimeError: the Executor is shut down.
        """
        self._refuse_if_shut_down("refusing to register function")
        key, sources = (source, function_name), self._functions.sources
        if key in sources:
            raise ValueError(_registered(function_name, sources[key]))
        sources[key] = self.client.register_source_code(source, function_name, **kwargs)
        return sources[key]

    # Tasks.

    @property
    def _executor(self) -> Executor:
        return self

    def get_worker_hardware_details(self) -> str:
        """Return a text that describes a worker's machine; waits for a task that determines it."""
        key = hardware_source()
        known = self._functions.sources.get(key) or self.register_source_code(*key)
        return str(self.submit_to_registered_function(known).result())

    def attach(self, jobid: int | str) -> ComputeFuture:
        """Follow a job of the endpoint's Flux instance that was submitted by other means.

        Args:
            jobid: its id, a number or any printed form (`ƒ2WXGLe`, `f2WXGLe`, `0x…`, dotted).

        Returns:
            A future whose result is a `ShellResult`: exit status and the last lines of output. It
            fails if the instance has no such job, or if the job belongs to another user.

        Raises:
            ValueError: `jobid` is not a job id, no endpoint is set, or the Executor has a
                `user_endpoint_config`.
            RuntimeError: the Executor is shut down.
        """
        self._refuse_if_shut_down()
        number = parse_jobid(jobid)
        if self.user_endpoint_config:
            raise ValueError(
                "user_endpoint_config has no effect on a job that is only followed: attach with an "
                "Executor that has none"
            )
        route = SubmissionRoute(
            self._group(),
            self._route().endpoint_id,
            result_serializers=self._result_serializer_paths,
            attach_jobid=number,
        )
        future = ComputeFuture(task_group_id=route.task_group_id, endpoint_id=route.endpoint_id)
        self._read_with(future, self.serializer)
        future._job_record().set_jobid(number)
        self._submitter.put(PendingTask(future, route, FunctionRegistration("attach"), ""))
        return future

    def reload_tasks(self, task_group_id: UuidLike | None = None) -> list[ComputeFuture]:
        """Return a future for each task of a group, e.g. after a restart of the program.

        Futures of tasks that have ended are done at once; the others, when their results arrive. If
        this process already waits for a task, its present future is returned.

        Args:
            task_group_id: the group, which becomes the group of this Executor; by default its
                present one.

        Raises:
            ValueError: no group is set, or the id is not a UUID.
            ServiceError: the service does not know the group, or it belongs to another user.
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: the Executor is shut down.
        """
        self._refuse_if_shut_down()
        if task_group_id is not None:
            self.task_group_id = task_group_id
        if self._task_group_id is None:
            raise ValueError("must specify a task_group_id in order to reload tasks")
        return reload_group(
            str(self._task_group_id),
            self.client.api,
            self._streams,
            partial(self._read_with, serializer=self.serializer),
            self._submitter.track,
        )

    def task_group(self, task_group_id: UuidLike) -> TaskGroup:
        """Return the tasks of a group as a lazy sequence, e.g. after a restart of the program.

        Unlike `reload_tasks`, it makes no future until it is asked for, asks the service only for
        the tasks that are read, and this Executor does not wait for the tasks at its shutdown.

        Args:
            task_group_id: the group. The group of this Executor stays as it is.

        Raises:
            ValueError: the id is not a UUID.
            ServiceError: the service does not know the group, or it belongs to another user.
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: the Executor is shut down.
        """
        self._refuse_if_shut_down()
        return existing_group(self, str(as_uuid(task_group_id, "task_group_id")))

    # The end.

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks.

        Args:
            wait: whether to wait until all futures are done. Otherwise, results still arrive as
                long as the process runs.
            cancel_futures: whether to cancel the tasks that have not been sent yet.
        """
        if not self._birthplace.is_here():  # a forked child must not touch its parent's threads
            return
        self._submitter.close(cancel=cancel_futures)
        if wait and not on_client_thread():
            self._submitter.wait()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        """Shut down. After an exception, don't wait; after Ctrl-C, also cancel unsent tasks."""
        if exc_type is None:
            self.shutdown()
            return None
        self.shutdown(wait=False, cancel_futures=issubclass(exc_type, KeyboardInterrupt))
        here = self._birthplace.is_here()
        groups = open_groups(self._submitter) if here else []
        waiting = self._submitter.open_count - len(groups) if here else 0
        for group in groups:
            text = (
                f"the Executor was left by {exc_type.__name__} without waiting for {group!r}. It "
                f"continues: Executor(...).task_group({group.task_group_id!r}) gets its results, "
                f"and `flux-endpoint cancel --group {group.task_group_id}` ends it"
            )
            event(log, logging.WARNING, text)
        if waiting > 0:
            event(
                log,
                logging.WARNING,
                f"the Executor was left by {exc_type.__name__} without waiting for {waiting} "
                f"task{'s'[: waiting != 1]}. Sent tasks continue at the endpoint: "
                f"Executor(...).reload_tasks({str(self.task_group_id)!r}) gets their results, and "
                f"`flux-endpoint cancel --group {self.task_group_id}` ends all tasks of the group",
            )
        return None

    def _refuse_if_shut_down(self, what: str = "no new functions may be executed") -> None:
        self._birthplace.require("this Executor")
        if self._submitter.is_closed:
            raise RuntimeError(f"{self!r} is shutdown; {what}: create another Executor")


def _registered(name: str, function_id: str | None, attempted: str | None = None) -> str:
    known = function_id or "(that of its first submission)"
    tried = f" (attempted id: {attempted})" if attempted else ""
    return f"Function already registered as function id: {known}{tried}: '{name}'"
