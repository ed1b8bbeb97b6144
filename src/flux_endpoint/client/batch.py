"""`Batch`: tasks that are submitted in one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

from flux_endpoint.client.api import user_runtime
from flux_endpoint.client.checks import checked_resources
from flux_endpoint.client.commands import RegisteredCommands
from flux_endpoint.client.ids import UuidLike, as_optional_uuid, as_uuid
from flux_endpoint.client.registry import serialize_call
from flux_endpoint.serialize import ComputeSerializer


class Batch:
    """Collects calls of registered functions for `Client.batch_run`.

    Args:
        task_group_id: the group that the tasks belong to; `None` lets the service make one.
        resource_specification: resources of each task.
        user_endpoint_config: values for the endpoint's configuration template.
        request_queue: whether the service also sends results to the group's queue.
        serializer: turns arguments into text.
        user_runtime: description of this program; by default as `api.user_runtime` returns it.
        result_serializers: import paths of strategies for the endpoint to try on each result.
        commands: known command functions; `add` checks the arguments of their calls.
        find_endpoint: returns the id of an endpoint from its id or name; by default only ids are
            accepted.

    Raises:
        ValueError: `task_group_id` is not a UUID.
        TypeError: `resource_specification` is not a dictionary that JSON can hold.
        ResourceSpecificationError: `resource_specification` has an invalid key or value.

    Attributes:
        tasks: packed arguments of each call, by function id.
        endpoint_id: the endpoint that `add` was called with; `None`: `batch_run` must name it.

    Example:
        batch = client.create_batch()
        batch.add(function_id, args=(2, 10))
        answer = client.batch_run(endpoint_id, batch)
    """

    def __init__(  # noqa: PLR0917 - the official order
        self,
        task_group_id: UuidLike | None,
        resource_specification: Mapping[str, Any] | None = None,
        user_endpoint_config: Mapping[str, Any] | None = None,
        request_queue: bool = False,
        serializer: ComputeSerializer | None = None,
        user_runtime: Mapping[str, Any] | None = None,
        result_serializers: Iterable[str] | None = None,
        *,
        commands: RegisteredCommands | None = None,
        find_endpoint: Callable[[UuidLike], UUID] | None = None,
    ) -> None:
        self.task_group_id = task_group_id
        self.resource_specification = checked_resources(resource_specification)
        self.user_endpoint_config = user_endpoint_config
        self.request_queue = request_queue
        self.user_runtime = user_runtime
        self.result_serializers = None if result_serializers is None else list(result_serializers)
        self.tasks: dict[UUID, list[str]] = {}
        self.endpoint_id: UUID | None = None
        self._serializer = serializer or ComputeSerializer()
        self._commands = commands or RegisteredCommands()
        self._find_endpoint = find_endpoint or (lambda value: as_uuid(value, "endpoint_id"))

    def __len__(self) -> int:
        return sum(len(payloads) for payloads in self.tasks.values())

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} tasks, task group {self.task_group_id}>"

    @property
    def task_group_id(self) -> UUID | None:
        """The group that the tasks belong to; assign a UUID, its text or `None`."""
        return self._task_group_id

    @task_group_id.setter
    def task_group_id(self, value: UuidLike | None) -> None:
        self._task_group_id = as_optional_uuid(value, "task_group_id")

    def add(
        self,
        function_id: UuidLike,
        *positional: Any,
        args: tuple[Any, ...] | list[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        endpoint_id: UuidLike | None = None,
    ) -> None:
        """Add a call.

        Existing scripts use two orders of arguments, and both work:
        `add(function_id, args, kwargs)` and `add(function_id, endpoint_id, args, kwargs)`. All
        arguments may be passed by name instead.

        Args:
            function_id: a registered function.
            positional: the other arguments in one of these orders.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
            endpoint_id: the endpoint that runs it; the same for all tasks of a batch.

        Raises:
            TypeError: an argument has the wrong type or is given twice; or the function is a
                command function that the client has registered, and its command can't be formatted
                with these arguments.
            ValueError: an id is not a UUID; the endpoint differs from that of earlier calls; or a
                command can't be formatted, as above.
            SerializationError: the arguments can't be serialized, or are too large.
        """
        rest = list(positional)
        if rest and _may_be_id(rest[0]):
            if endpoint_id is not None:
                raise TypeError("endpoint_id is given twice")
            endpoint_id = rest.pop(0)
        if len(rest) > 2 or (rest and args is not None) or (len(rest) == 2 and kwargs is not None):
            raise TypeError("add takes a function id, an endpoint id, args and kwargs, each once")
        args = rest[0] if rest and rest[0] is not None else args
        kwargs = rest[1] if len(rest) == 2 and rest[1] is not None else kwargs
        if not isinstance(args, tuple | list | None):
            raise TypeError(f"args: expected `tuple`, got: {type(args).__name__}")
        if not isinstance(kwargs, dict | None):
            raise TypeError(f"kwargs: expected dict, got: {type(kwargs).__name__}")
        wrong = [type(key).__name__ for key in kwargs or () if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"kwargs: expected kwargs with `str` keys, got: {wrong[0]}")
        function = as_uuid(function_id, "function_id")
        endpoint = self._find_endpoint(endpoint_id) if endpoint_id else self.endpoint_id
        if self.endpoint_id is not None and endpoint != self.endpoint_id:
            raise ValueError(
                f"this batch goes to endpoint {self.endpoint_id}, not {endpoint}: make one for each"
            )
        self._commands.check(str(function), args or (), kwargs or {})
        payload = serialize_call(
            self._serializer, str(function), args or (), kwargs or {}, may_be_command=False
        )
        self.endpoint_id = endpoint
        self.tasks.setdefault(function, []).append(payload)

    def prepare(self) -> dict[str, Any]:
        """Return the request that submits the batch."""
        body: dict[str, Any] = {
            "tasks": {str(function): payloads for function, payloads in self.tasks.items()},
            "create_queue": self.request_queue,
            "user_runtime": dict(self.user_runtime or user_runtime()),
        }
        if self.task_group_id is not None:
            body["task_group_id"] = str(self.task_group_id)
        for name in ("resource_specification", "user_endpoint_config", "result_serializers"):
            if value := getattr(self, name):
                body[name] = value
        return body


def _may_be_id(value: object) -> bool:
    try:
        return isinstance(value, UUID) or (isinstance(value, str) and bool(UUID(value)))
    except ValueError:
        return False
