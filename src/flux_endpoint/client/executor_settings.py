"""The settings of an Executor: checked when they are assigned, read when a task is submitted."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from flux_endpoint.client.backlog import SubmissionRoute
from flux_endpoint.client.cache import call_key
from flux_endpoint.client.checks import (
    checked_batch_size,
    checked_dict,
    checked_port,
    checked_resources,
    checked_seconds,
    refuse_misspelt,
)
from flux_endpoint.client.client import Client
from flux_endpoint.client.endpoints import find_endpoint
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.ids import UuidLike, as_optional_uuid
from flux_endpoint.client.registry import FunctionRegistration
from flux_endpoint.client.streams import Streams
from flux_endpoint.client.submitter import Submitter
from flux_endpoint.data import DataStore
from flux_endpoint.protocol.exceptions import RemoteErrors
from flux_endpoint.serialize import ComputeSerializer, Strategylike, validate_strategylike

#: Default task groups, by process and user.
_default_groups: dict[tuple[int, tuple[str, str]], UUID] = {}


class ExecutorSettings:
    """The attributes of an Executor that may be assigned at any time.

    The Executor sets those that are annotated here first, since they store some of these.
    """

    client: Client
    _streams: Streams
    _submitter: Submitter
    _remote_errors: RemoteErrors

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, but refuse a name that looks like a misspelt argument.

        Raises:
            AttributeError: the name is close to an argument's; the text suggests that argument.
        """
        if not name.startswith("_") and not hasattr(type(self), name):
            refuse_misspelt(type(self), name)
        super().__setattr__(name, value)

    @property
    def endpoint_id(self) -> UUID | None:
        """The endpoint that runs the tasks; assign a UUID, its text, or the endpoint's name."""
        return self._endpoint_id

    @endpoint_id.setter
    def endpoint_id(self, value: UuidLike | None) -> None:
        self._endpoint_id = (
            None if value is None else find_endpoint(value, self.client.api, "endpoint_id")
        )

    @property
    def task_group_id(self) -> UUID | None:
        """The group of tasks submitted from now on, and the default of the user's later Executors.

        Assign a UUID or its text to continue an earlier group. Assign `None` to begin a new group
        at the next submission; until then, the value is `None`.
        """
        return self._task_group_id

    @task_group_id.setter
    def task_group_id(self, value: UuidLike | None) -> None:
        group = as_optional_uuid(value, "task_group_id")
        self._next_group = uuid.uuid4()  # chosen here, so that concurrent threads use the same
        self._task_group_id = group
        if group is not None:
            _default_groups[self._default_group_key] = group

    def _default_group(self) -> UUID:
        return _default_groups.get(self._default_group_key) or uuid.uuid4()

    @property
    def _default_group_key(self) -> tuple[int, tuple[str, str]]:
        # A forked child does not share its parent's group, and a group belongs to one user.
        return os.getpid(), self.client.api.identity

    @property
    def resource_specification(self) -> dict[str, Any] | None:
        """Resources of each task; a dictionary that JSON can hold."""
        return self._resource_specification

    @resource_specification.setter
    def resource_specification(self, value: Mapping[str, Any] | None) -> None:
        self._resource_specification = checked_resources(value)
        self._checked = ""

    @property
    def user_endpoint_config(self) -> dict[str, Any] | None:
        """Values for the endpoint's configuration template; a dictionary that JSON can hold."""
        return self._user_endpoint_config

    @user_endpoint_config.setter
    def user_endpoint_config(self, value: Mapping[str, Any] | None) -> None:
        self._user_endpoint_config = checked_dict(value, "user_endpoint_config")

    @property
    def batch_size(self) -> int:
        """The most tasks in one request, at least 1."""
        return self._submitter.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self._submitter.batch_size = checked_batch_size(value)

    @property
    def give_up_after(self) -> float:
        """Requests to an unreachable service are retried for this time (s) before tasks fail."""
        return self._submitter.give_up_after

    @give_up_after.setter
    def give_up_after(self, value: float) -> None:
        self._submitter.give_up_after = checked_seconds(value, "give_up_after")

    @property
    def amqp_port(self) -> int | None:
        """Port of the message broker; `None`: the port that the service returns."""
        return self._streams.amqp_port

    @amqp_port.setter
    def amqp_port(self, value: int | None) -> None:
        self._streams.amqp_port = checked_port(value)

    @property
    def serializer(self) -> ComputeSerializer:
        """The client's serializer: turns functions and arguments into text, and results back."""
        return self.client.fx_serializer

    @serializer.setter
    def serializer(self, value: ComputeSerializer) -> None:
        if not isinstance(value, ComputeSerializer):
            raise TypeError(
                f"Expected ComputeSerializer, got {type(value).__name__}: set "
                "executor.serializer = ComputeSerializer(...)"
            )
        self.client.fx_serializer = value

    @property
    def store(self) -> DataStore | None:
        """The store of the serializer, for large arguments and results; `None`: there is none."""
        store = self.serializer.store
        return store if isinstance(store, DataStore) else None

    @store.setter
    def store(self, value: DataStore | None) -> None:
        self.serializer = _with_store(self.serializer, value)

    @property
    def result_serializers(self) -> Sequence[Strategylike] | None:
        """Strategies for the endpoint to try on each result, in order; `None`: its defaults."""
        return self._result_serializers

    @result_serializers.setter
    def result_serializers(self, value: Iterable[Strategylike] | None) -> None:
        self._result_serializers = None if value is None else list(value)
        self._result_serializer_paths = tuple(
            validate_strategylike(strategy).import_path
            for strategy in self._result_serializers or ()
        )

    @property
    def exceptions(self) -> Sequence[type[Exception]]:
        """The caller's own exception classes that an error of a task may have as its cause."""
        return tuple(self._remote_errors.classes.values())

    @exceptions.setter
    def exceptions(self, value: Iterable[type[Exception]]) -> None:
        self._remote_errors = RemoteErrors.of(value, are_raised=self.raise_remote)

    @property
    def raise_remote(self) -> bool:
        """Whether a future raises the exception that its task raised, if that is known."""
        return self._remote_errors.are_raised

    @raise_remote.setter
    def raise_remote(self, value: bool) -> None:
        self._remote_errors = RemoteErrors.of(self.exceptions, are_raised=value)

    @property
    def cache(self) -> bool | str:
        """Whether results of earlier calls are used; a text names the environment."""
        return self._cache

    @cache.setter
    def cache(self, value: bool | str) -> None:
        if not isinstance(value, bool | str):
            raise TypeError(f"cache must be True, False or a text, got {type(value).__name__}")
        self._cache = value

    def _key_of_call(
        self, route: SubmissionRoute, function: FunctionRegistration, payload: str
    ) -> str:
        """Return the key of a call in the cache; empty: it is not cached."""
        if self._cache is False or route.attach_jobid is not None:
            return ""
        environment = "" if self._cache is True else self._cache
        return call_key(route, function, payload, environment)

    def _read_with(self, future: ComputeFuture, serializer: ComputeSerializer) -> None:
        """Set how a future reads its result, its error and its job's events."""
        future._load = serializer.deserialize
        future._remote_errors = self._remote_errors
        future._events = self._streams

    def _route(
        self, resources: Mapping[str, Any] | None = None, run_options: str = ""
    ) -> SubmissionRoute:
        """Return the settings of a task with the given resources and options (JSON)."""
        if self._endpoint_id is None:
            raise ValueError(
                "No endpoint_id set: pass it to the constructor, Executor(endpoint_id=...), or "
                "assign executor.endpoint_id; `flux-endpoint list` shows yours"
            )
        # Serialize each time: the dictionaries may have been changed in place.
        config = self._user_endpoint_config
        wanted = json.dumps(resources, sort_keys=True) if resources else ""
        if wanted != self._checked:
            checked_resources(resources)
            self._checked = wanted
        return SubmissionRoute(
            self._group(),
            str(self._endpoint_id),
            wanted,
            json.dumps(config, sort_keys=True) if config else "",
            self._result_serializer_paths,
            run_options=run_options,
        )

    def _group(self) -> str:
        """Return the group for a new task; begin one if there is none."""
        if self._task_group_id is None:
            self.task_group_id = self._next_group
        return str(self._task_group_id)


def serializer_with(serializer: ComputeSerializer, store: DataStore | None) -> ComputeSerializer:
    """Return a serializer with a store; if none is given, the serializer itself.

    Args:
        serializer: the serializer.
        store: the store.

    Raises:
        TypeError: `store` is not one.
        StrategyError: the serializer's strategy for data can't write references.
    """
    return serializer if store is None else _with_store(serializer, store)


def _with_store(serializer: ComputeSerializer, store: DataStore | None) -> ComputeSerializer:
    if not isinstance(store, DataStore | None):
        raise TypeError(
            "store must be a SharedDirectory or ConnectorStore of flux_endpoint.data, got "
            f"{type(store).__name__}"
        )
    return serializer.with_store(store)
