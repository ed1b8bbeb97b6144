"""`Client`: one method for each request to the service."""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.batch import Batch
from flux_endpoint.client.commands import RegisteredCommands
from flux_endpoint.client.endpoints import find_endpoint
from flux_endpoint.client.ids import UuidLike, as_uuid
from flux_endpoint.client.registry import registration_body, source_body
from flux_endpoint.client.results import STATUS_CHUNK, from_document, load
from flux_endpoint.client.skew import warn_of_skew
from flux_endpoint.credentials import Credentials, load_credentials
from flux_endpoint.errors import (
    ConfigurationError,
    DeserializationError,
    TaskError,
    TaskPending,
)
from flux_endpoint.functions import hardware
from flux_endpoint.serialize import ComputeSerializer, SerializationStrategy


class Client:
    """Sends single requests to the service; for many tasks, `Executor` is faster and simpler.

    Every method that makes a request raises `ServiceError` if the service refuses it, and
    `ServiceUnreachableError` if it can't be reached. An endpoint may be given by its id, or by its
    name on this machine or at the service. A method raises `ValueError` if an id is not a UUID, or
    if no endpoint has the name.

    Args:
        service_url: URL of the service; by default from the environment or the credentials file,
            see `load_credentials`.
        token: access token of the service; give both, URL and token, or neither.
        code_serialization_strategy: strategy for functions; by default `DillCode`.
        data_serialization_strategy: strategy for arguments; by default `DillDataBase64`.
        do_version_check: accepted because the official client has it; has no effect.

    Attributes:
        session_task_group_id: default task group of batches; save it to reload their tasks later.
        fx_serializer: turns functions and arguments into text, and results back.

    Raises:
        ConfigurationError: the service's URL or token is missing or invalid.

    Example:
        client = Client()
        function_id = client.register_function(pow)
        task_id = client.run(2, 10, endpoint_id="my-laptop", function_id=function_id)
        client.get_result(task_id)  # raises TaskPending until the task has ended
    """

    def __init__(
        self,
        service_url: str | None = None,
        token: str | None = None,
        *,
        code_serialization_strategy: SerializationStrategy | None = None,
        data_serialization_strategy: SerializationStrategy | None = None,
        do_version_check: bool = True,  # noqa: ARG002 - of the official client
    ) -> None:
        self.api = ServiceApi(_credentials(service_url, token))
        self._commands = RegisteredCommands()
        self.session_task_group_id = str(uuid.uuid4())
        self.fx_serializer = ComputeSerializer(
            strategy_code=code_serialization_strategy, strategy_data=data_serialization_strategy
        )

    def __repr__(self) -> str:
        return f"<Client of {self.api.url}>"

    # Functions.

    def register_function(
        self,
        function: Callable[..., Any],
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        public: bool = False,
        group: UuidLike | None = None,
    ) -> str:
        """Register a function.

        Args:
            function: any callable.
            description: text about it; by default its docstring.
            metadata: further values that the service keeps with it; JSON must be able to hold them.
            public: whether all users may run it.
            group: id of a Globus group; the service has no groups and refuses it.

        Returns:
            The function's id.

        Raises:
            TypeError: `function` is not callable.
            SerializationError: the function can't be serialized, or is too large.
        """
        function_id = self.api.register(
            registration_body(
                function,
                self.fx_serializer,
                description=description,
                metadata=metadata,
                public=public,
                group=group,
            )
        )
        self._commands.add(function_id, function)
        return function_id

    def register_source_code(  # noqa: PLR0917 - the official order
        self,
        source: str,
        function_name: str,
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        public: bool = False,
        group: UuidLike | None = None,
    ) -> str:
        """Register a function as Python source text.

        Args:
            source: the text; it may define more than the function.
            function_name: name of the function, which the text defines at its top level.
            description: text about it.
            metadata: as in `register_function`.
            public: whether all users may run it.
            group: as in `register_function`.

        Returns:
            The function's id.

        Raises:
            ValueError: the text is not valid Python, or does not define the function.
            PayloadTooLargeError: the text is too large.
        """
        return self.api.register(
            source_body(
                source,
                function_name,
                description=description,
                metadata=metadata,
                public=public,
                group=group,
            )
        )

    def get_function(self, function_id: UuidLike) -> dict[str, Any]:
        """Return the service's document of a function.

        Args:
            function_id: the function's id.
        """
        return self.api.function(str(as_uuid(function_id, "function_id")))

    def delete_function(self, function_id: UuidLike) -> dict[str, Any]:
        """Delete a function; tasks that were already submitted still run it.

        Args:
            function_id: the function's id.
        """
        return self.api.delete_function(str(as_uuid(function_id, "function_id")))

    # Tasks.

    def create_batch(
        self,
        task_group_id: UuidLike | None = None,
        resource_specification: Mapping[str, Any] | None = None,
        user_endpoint_config: Mapping[str, Any] | None = None,
        create_websocket_queue: bool = False,
        result_serializers: Iterable[str] | None = None,
    ) -> Batch:
        """Return an empty batch.

        Args:
            task_group_id: the group of its tasks; by default `session_task_group_id`.
            resource_specification: resources of each task.
            user_endpoint_config: values for the endpoint's configuration template.
            create_websocket_queue: whether the service also sends results to the group's queue.
            result_serializers: import paths of strategies for the endpoint to try on each result.

        Raises:
            ValueError: `task_group_id` is not a UUID.
            TypeError: `resource_specification` is not a dictionary that JSON can hold.
            ResourceSpecificationError: `resource_specification` has an invalid key or value.
        """
        return Batch(
            task_group_id or self.session_task_group_id,
            resource_specification,
            user_endpoint_config,
            create_websocket_queue,
            serializer=self.fx_serializer,
            result_serializers=result_serializers,
            commands=self._commands,
            find_endpoint=functools.partial(find_endpoint, api=self.api, what="endpoint_id"),
        )

    def batch_run(
        self, endpoint_id: UuidLike | Batch | None = None, batch: Batch | None = None
    ) -> dict[str, Any]:
        """Submit a batch.

        Call `batch_run(endpoint_id, batch)`, or just `batch_run(batch)` if the calls were added
        with an endpoint.

        Args:
            endpoint_id: the endpoint that runs the tasks.
            batch: the batch.

        Returns:
            `tasks` (lists of task ids by function id, in the order of the calls), `task_group_id`,
            `endpoint_id` and `request_id`.

        Raises:
            ValueError: the batch is empty, or no endpoint is set.
        """
        if isinstance(endpoint_id, Batch):
            endpoint_id, batch = None, endpoint_id
        if not batch:
            raise ValueError("the batch is empty: add calls to it first")
        target = endpoint_id or batch.endpoint_id
        if target is None:
            raise ValueError("no endpoint is set: use batch_run(endpoint_id, batch)")
        key = uuid.uuid4().hex
        return self.api.submit(self._endpoint(target), batch.prepare(), key)

    def run(self, *args: Any, endpoint_id: UuidLike, function_id: UuidLike, **kwargs: Any) -> str:
        """Submit one call of a registered function.

        Args:
            args: positional arguments of the call.
            endpoint_id: the endpoint that runs it.
            function_id: the function.
            kwargs: keyword arguments of the call.

        Returns:
            The task's id.

        Raises:
            ValueError: an id is not a UUID, or no endpoint has the name.
            SerializationError: the arguments can't be serialized, or are too large.
        """
        batch = self.create_batch()
        batch.add(function_id, args=args, kwargs=kwargs)
        answer = self.batch_run(endpoint_id, batch)
        task_id: str = answer["tasks"][str(as_uuid(function_id, "function_id"))][0]
        return task_id

    def get_task(self, task_id: UuidLike) -> dict[str, Any]:
        """Return a task's state.

        Args:
            task_id: the task.

        Returns:
            A dictionary with `pending` and `status`. A task that has ended also has `completion_t`
            (seconds since the epoch, as text) and its `result`, or a `reason` if there is neither
            a result nor an error. `details` has the endpoint's details, if known.

        Raises:
            TaskExecutionFailed: the task raised an exception, or could not be run.
            TaskCancelled: it was ended on request.
            DeserializationError: its result can't be read here.
        """
        document = self.api.task(str(as_uuid(task_id, "task_id")))
        state = self._state(document)
        # A task with neither a result nor an error returns its `reason` instead of raising.
        error = state.pop("exception", None)
        if error is not None and (document.get("exception") or document.get("result")):
            raise error
        return state

    def get_result(self, task_id: UuidLike) -> Any:
        """Return a task's result. Does not wait.

        Args:
            task_id: the task.

        Raises:
            TaskPending: the task has not ended.
            TaskExecutionFailed: it raised an exception, or could not be run.
            TaskCancelled: it was ended on request.
            DeserializationError: its result can't be read here.
        """
        state = self._state(self.api.task(str(as_uuid(task_id, "task_id"))))
        if state["pending"]:
            raise TaskPending(state["status"])
        if "exception" in state:
            raise state["exception"]
        return state["result"]

    def get_batch_result(self, task_id_list: Iterable[UuidLike]) -> dict[str, dict[str, Any]]:
        """Return the states of many tasks.

        Args:
            task_id_list: the tasks.

        Returns:
            By task id, the state as `get_task` returns it. The state of a failed task also has the
            error as `exception` and its text as `reason`; nothing is raised for it.
        """
        ids = list(dict.fromkeys(str(as_uuid(id_, "task_id_list")) for id_ in task_id_list))
        states: dict[str, dict[str, Any]] = {}
        for start in range(0, len(ids), STATUS_CHUNK):
            documents = self.api.batch_status(ids[start : start + STATUS_CHUNK])
            states |= {
                id_: self._state({**document, "task_id": id_})
                for id_, document in documents.items()
            }
        return states

    def cancel_task(self, task_id: UuidLike) -> dict[str, Any]:
        """End a task, queued or running, with all its processes; its error is `TaskCancelled`.

        Args:
            task_id: the task.

        Returns:
            `task_id`, its `status`, and `delivered`: whether its endpoint received the request.

        Raises:
            ServiceError: the task is unknown, or its endpoint can't cancel tasks.
        """
        return self.api.kill(str(as_uuid(task_id, "task_id")))

    def _state(self, document: dict[str, Any]) -> dict[str, Any]:
        end = from_document(document)
        state: dict[str, Any] = {
            "pending": end is None,
            "status": str(document.get("status", "unknown")).lower(),
        }
        if document.get("details"):
            state["details"] = document["details"]
        if end is not None:
            state["completion_t"] = end.completion_t
            warn_of_skew(end.details)
            try:
                state["result"] = load(end, self.fx_serializer.deserialize)
            except (TaskError, DeserializationError) as error:
                state["exception"] = error
                state["reason"] = end.error or str(error)
        return state

    # Endpoints.

    def get_endpoints(self, role: str | None = None) -> list[dict[str, Any]]:
        """Return the documents of endpoints.

        Args:
            role: "any": all endpoints that the user may see; otherwise the user's own.
        """
        return self.api.endpoints(role)

    def get_endpoint_status(self, endpoint_uuid: UuidLike) -> dict[str, Any]:
        """Return whether an endpoint is `online` or `offline`, and its last report as `details`.

        Args:
            endpoint_uuid: the endpoint's id or name.
        """
        return self.api.endpoint_status(self._endpoint(endpoint_uuid, "endpoint_uuid"))

    def get_endpoint_metadata(self, endpoint_uuid: UuidLike) -> dict[str, Any]:
        """Return the metadata that an endpoint sent at its registration.

        Args:
            endpoint_uuid: the endpoint's id or name.
        """
        return self.api.endpoint(self._endpoint(endpoint_uuid, "endpoint_uuid"))

    def get_allowed_functions(self, endpoint_id: UuidLike) -> dict[str, Any]:
        """Return the functions that an endpoint runs.

        Args:
            endpoint_id: the endpoint.

        Returns:
            `restricted`: whether it runs only some functions; `functions`: the ids of those.
        """
        return self.api.allowed_functions(self._endpoint(endpoint_id))

    def get_worker_hardware_details(self, endpoint_id: UuidLike) -> str:
        """Submit a task that describes the machine of an endpoint's worker.

        Args:
            endpoint_id: the endpoint.

        Returns:
            The id of the task; its result is a text for people to read.
        """
        function_id = self.register_source_code(*hardware_source())
        return self.run(endpoint_id=endpoint_id, function_id=function_id)

    def stop_endpoint(self, endpoint_id: UuidLike) -> dict[str, Any]:
        """Stop an endpoint gracefully, and refuse its registration for a while.

        Its running tasks get its `shutdown_grace` to finish. The other tasks run after the endpoint
        is started again; its owner has to do that on its machine.

        Args:
            endpoint_id: the endpoint.

        Returns:
            `endpoint_id`; `lock_expiration_timestamp`: it can't be started until then (UTC, ISO
            8601); `delivered`: whether it was online and received the request.
        """
        return self.api.lock_endpoint(self._endpoint(endpoint_id))

    def delete_endpoint(self, endpoint_id: UuidLike) -> dict[str, Any]:
        """Delete an endpoint permanently; it accepts no more tasks.

        Args:
            endpoint_id: the endpoint's id or name.
        """
        return self.api.delete_endpoint(self._endpoint(endpoint_id))

    def _endpoint(self, value: UuidLike, what: str = "endpoint_id") -> str:
        return str(find_endpoint(value, self.api, what))

    def get_result_amqp_url(self) -> dict[str, str]:
        """Return the broker's `connection_url`, and the `queue_prefix` of official clients."""
        url, prefix = self.api.result_connection()
        return {"connection_url": url, "queue_prefix": prefix}


def hardware_source() -> tuple[str, str]:
    """Return the source of a function that describes its machine, and the function's name.

    Source text runs on all endpoints, official ones too, without this package.
    """
    return inspect.getsource(hardware), hardware.hardware_report.__name__


def _credentials(service_url: str | None, token: str | None) -> Credentials:
    if service_url is None and token is None:
        return load_credentials()
    if service_url is None or token is None:
        # Never add a token from elsewhere: it would be sent to a service that it is not for.
        raise ConfigurationError("Client needs service_url and token together, or neither")
    return Credentials(service_url, token, source="the arguments of Client")
