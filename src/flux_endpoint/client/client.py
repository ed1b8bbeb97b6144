"""`Client`: one method for each thing that can be asked of the service."""

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
from flux_endpoint.client.results import from_document, load
from flux_endpoint.client.skew import warn_of_skew
from flux_endpoint.client.stream import STATUS_CHUNK
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
    """Asks the service directly; for many tasks, `Executor` is faster and simpler.

    Every method that makes a request raises `ServiceError` if the service refuses it, and
    `ServiceUnreachableError` if it can't be reached. An endpoint is named by its id, or by its name
    on this machine or at the service.

    Args:
        service_url: where the service is; by default what the environment or the credentials file
            says, see `load_credentials`.
        token: the access token for it; both or none of the two.
        code_serialization_strategy: for functions, by default `DillCode`.
        data_serialization_strategy: for arguments, by default `DillDataBase64`.
        do_version_check: as of the official client; either is taken, there is nothing to check.

    Attributes:
        session_task_group_id: the group of batches that name none; save it to reload their tasks.
        fx_serializer: turns functions and arguments into text, and results back.

    Raises:
        ConfigurationError: nothing says where the service is, or what says it is wrong.
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
            description: what it does; by default its docstring.
            metadata: more to keep with it.
            public: let everybody run it.
            group: of Globus Groups; the service has none, and refuses it.

        Returns:
            The function's id.

        Raises:
            SerializationError: the function can't be serialized.
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
        """Register Python source text, of which tasks call `function_name`.

        Returns:
            The function's id.

        Raises:
            ValueError: the text is no Python, or lacks the function.
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
        """Return what the service knows of a function."""
        return self.api.function(str(as_uuid(function_id, "function_id")))

    def delete_function(self, function_id: UuidLike) -> dict[str, Any]:
        """Delete a function; tasks that were submitted keep it."""
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
            create_websocket_queue: have results sent to the group's queue too.
            result_serializers: import paths of strategies for the endpoint to try on each result.
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
        """Submit a batch: `batch_run(endpoint_id, batch)`.

        `batch_run(batch)` does if its calls were added with an endpoint.

        Returns:
            `tasks` (lists of task ids by function id, in the order of the calls), `task_group_id`,
            `endpoint_id` and `request_id`.

        Raises:
            ValueError: the batch is empty, or nothing says where it shall run.
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
        """Submit one call of a registered function and return its task's id."""
        batch = self.create_batch()
        batch.add(function_id, args=args, kwargs=kwargs)
        answer = self.batch_run(endpoint_id, batch)
        task_id: str = answer["tasks"][str(as_uuid(function_id, "function_id"))][0]
        return task_id

    def get_task(self, task_id: UuidLike) -> dict[str, Any]:
        """Return a task's state.

        Returns:
            `pending` and `status`; once it has ended also `completion_t` (seconds since the epoch,
            as text) and `result`, or a `reason` if there is neither result nor error; `details` of
            the endpoint, if known.

        Raises:
            TaskExecutionFailed: it raised, or could not be run.
            TaskCancelled: it was ended on request.
            DeserializationError: its result can't be read here.
        """
        document = self.api.task(str(as_uuid(task_id, "task_id")))
        state = self._state(document)
        # Without an error of its own, a task that has no result is no exception.
        error = state.pop("exception", None)
        if error is not None and (document.get("exception") or document.get("result")):
            raise error
        return state

    def get_result(self, task_id: UuidLike) -> Any:
        """Return what a task returned.

        Raises:
            TaskPending: it has not ended.
            TaskExecutionFailed: it raised, or could not be run.
            TaskCancelled: it was ended on request.
            DeserializationError: what it returned can't be read here.
        """
        state = self._state(self.api.task(str(as_uuid(task_id, "task_id"))))
        if state["pending"]:
            raise TaskPending(state["status"])
        if "exception" in state:
            raise state["exception"]
        return state["result"]

    def get_batch_result(self, task_id_list: Iterable[UuidLike]) -> dict[str, dict[str, Any]]:
        """Return the states of many tasks, as of `get_task`, by task id.

        A task that failed has its error as `exception`, and the text of it as `reason`.
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
        """End a task, wherever it is, with all its processes; its error is `TaskCancelled`.

        Returns:
            `task_id`, its `status`, and as `delivered` whether its endpoint was told.

        Raises:
            ServiceError: the task is unknown, or its endpoint can't do that.
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
        """Return the endpoints of the user, or with `role="any"` all that the user may see."""
        return self.api.endpoints(role)

    def get_endpoint_status(self, endpoint_uuid: UuidLike) -> dict[str, Any]:
        """Return whether an endpoint is `online` or `offline`, and its last report as `details`."""
        return self.api.endpoint_status(self._endpoint(endpoint_uuid, "endpoint_uuid"))

    def get_endpoint_metadata(self, endpoint_uuid: UuidLike) -> dict[str, Any]:
        """Return what an endpoint told about itself when it registered."""
        return self.api.endpoint(self._endpoint(endpoint_uuid, "endpoint_uuid"))

    def get_allowed_functions(self, endpoint_id: UuidLike) -> dict[str, Any]:
        """Return whether an endpoint is `restricted` to the `functions` that are listed."""
        return self.api.allowed_functions(self._endpoint(endpoint_id))

    def get_worker_hardware_details(self, endpoint_id: UuidLike) -> str:
        """Have an endpoint's worker tell what machine it runs on.

        Returns:
            The id of a task whose result is a text for people to read.
        """
        function_id = self.register_source_code(*hardware_source())
        return self.run(endpoint_id=endpoint_id, function_id=function_id)

    def stop_endpoint(self, endpoint_id: UuidLike) -> dict[str, Any]:
        """Stop an endpoint in good order, and refuse its registration for a while.

        Its running tasks may finish for its `shutdown_grace`; what has not begun is run when it is
        started again, which whoever runs it has to do.

        Returns:
            `endpoint_id`; as `lock_expiration_timestamp` until when it can't be started (UTC, ISO
            8601); as `delivered` whether it was there to stop.
        """
        return self.api.lock_endpoint(self._endpoint(endpoint_id))

    def delete_endpoint(self, endpoint_id: UuidLike) -> dict[str, Any]:
        """Delete an endpoint for good: nothing can be submitted to it any more."""
        return self.api.delete_endpoint(self._endpoint(endpoint_id))

    def _endpoint(self, value: UuidLike, what: str = "endpoint_id") -> str:
        return str(find_endpoint(value, self.api, what))

    def get_result_amqp_url(self) -> dict[str, str]:
        """Return where results are streamed from: `connection_url` and `queue_prefix`."""
        url, prefix = self.api.result_connection()
        return {"connection_url": url, "queue_prefix": prefix}


def hardware_source() -> tuple[str, str]:
    """Return the source of a function that describes its machine, and the function's name.

    As text, an endpoint of any make runs it without this package.
    """
    return inspect.getsource(hardware), hardware.hardware_report.__name__


def _credentials(service_url: str | None, token: str | None) -> Credentials:
    if service_url is None and token is None:
        return load_credentials()
    if service_url is None or token is None:
        # Never a token from elsewhere: it would be shown to a service that it is not for.
        raise ConfigurationError("Client needs service_url and token together, or neither")
    return Credentials(service_url, token, source="the arguments of Client")
