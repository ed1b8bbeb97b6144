"""What the contract's tests need of either executor."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import types
from types import ModuleType
from typing import Any, Protocol

from flux_endpoint.engine.flux_executor import FollowingExecutor
from flux_endpoint.engine.lifeline import is_gone
from flux_endpoint.engine.local import JobException, LocalExecutor
from flux_endpoint.protocol.job_events import IN_ORDER

#: Seconds after which something that should happen counts as not happening.
PATIENCE = 60.0


class World(Protocol):
    nodes: int
    cores_per_node: int
    executor: Any
    job_exception: type[Any]

    def new_executor(self, **options: Any) -> Any:
        """Another executor of the same kind."""

    def cancel(self, jobid: int, note: str = "") -> None: ...

    def kill(self, jobid: int, signum: int) -> None: ...

    def jobspec_object(self, document: dict[str, Any]) -> Any:
        """An object of which executors take the encoding."""

    def close(self) -> None:
        """End what a failed test left running, and the executor."""


class LocalWorld:
    nodes = 4
    cores_per_node = 2
    job_exception = JobException

    def __init__(self) -> None:
        self.executor = self.new_executor()

    def new_executor(self, **options: Any) -> LocalExecutor:
        return LocalExecutor(nodes=self.nodes, cores_per_node=self.cores_per_node, **options)

    def cancel(self, jobid: int, note: str = "") -> None:
        self.executor.cancel_job(jobid, note)

    def kill(self, jobid: int, signum: int) -> None:
        self.executor.kill_job(jobid, signum)

    def jobspec_object(self, document: dict[str, Any]) -> Any:
        return types.SimpleNamespace(dumps=lambda: json.dumps(document))

    def close(self) -> None:
        for jobid in list(self.executor._shared.instance._jobs):
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                self.cancel(jobid)
        self.executor.shutdown()


class FluxWorld:
    def __init__(self, flux: ModuleType, uri: str) -> None:
        self._flux, self._uri = flux, uri
        self._handle = flux.Flux(uri)
        everything = flux.resource.resource_list(self._handle).get().all
        self.nodes = everything.nnodes
        self.cores_per_node = everything.ncores // everything.nnodes
        self.job_exception = flux.job.JobException
        self.executor = self.new_executor()

    def new_executor(self, **options: Any) -> Any:
        options.setdefault("poll_interval", 0.01)
        executor = self._flux.job.FluxExecutor(handle_args=(self._uri,), **options)
        following: Any = FollowingExecutor(executor, is_gone)
        following._broken_event = executor._broken_event
        return following

    def cancel(self, jobid: int, note: str = "") -> None:
        self._flux.job.cancel(self._handle, jobid, note)

    def kill(self, jobid: int, signum: int) -> None:
        self._flux.job.kill(self._handle, jobid, signum)

    def jobspec_object(self, document: dict[str, Any]) -> Any:
        return self._flux.job.JobspecV1(**document)

    def close(self) -> None:
        for job in self._flux.job.JobList(self._handle, filters=["active"]).jobs():
            with contextlib.suppress(FileNotFoundError):
                self.cancel(job.id)
        self.executor.shutdown()


def jobspec(
    *command: str,
    slots: int = 1,
    nodes: int = 0,
    cores: int = 1,
    gpus: int = 0,
    exclusive: bool = False,
    total: int | None = None,
    duration: float = 0,
    cwd: str = "/",
    environment: dict[str, str] | None = None,
    **system: Any,
) -> dict[str, Any]:
    """A version-1 jobspec; `slots` is for each node if there are `nodes`."""
    within: list[dict[str, Any]] = [{"type": "core", "count": cores}]
    if gpus:
        within.append({"type": "gpu", "count": gpus})
    resource: dict[str, Any] = {"type": "slot", "count": slots, "label": "task", "with": within}
    if nodes:
        resource = {"type": "node", "count": nodes, "with": [resource]}
        if exclusive:
            resource["exclusive"] = True
    count = {"per_slot": 1} if total is None else {"total": total}
    return {
        "version": 1,
        "resources": [resource],
        "tasks": [{"command": list(command), "slot": "task", "count": count}],
        "attributes": {
            "system": {
                "duration": duration,
                "cwd": cwd,
                "environment": {"PATH": os.environ["PATH"], **(environment or {})},
                **system,
            }
        },
    }


def text(*command: str, **options: Any) -> str:
    """A jobspec as the text that executors take."""
    return json.dumps(jobspec(*command, **options))


def shell(script: str, **options: Any) -> str:
    return text("sh", "-c", script, **options)


class Recorder:
    """Collects all events of a future, and waits for them."""

    def __init__(self, future: Any) -> None:
        self.future = future
        self.events: list[Any] = []
        self._changed = threading.Condition()
        for name in IN_ORDER:
            future.add_event_callback(name, self._record)

    def _record(self, _: Any, event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, name: str) -> Any:
        """The first event called `name`, as soon as it is there."""

        def found() -> Any:
            return next((event for event in self.events if event.name == name), None)

        with self._changed:
            event = self._changed.wait_for(found, PATIENCE)
        assert event is not None, f"no {name!r}, only {self.names}"
        return event

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


class Gate:
    """A callback that says when, and with what, it was called."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

    def __call__(self, *args: Any) -> None:
        self._calls.put(args)

    def wait(self) -> tuple[Any, ...]:
        return self._calls.get(timeout=PATIENCE)

    def is_unused(self) -> bool:
        return self._calls.empty()
