"""An engine under test: tasks in, each one's end out, and what it left running."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from flux_endpoint.engine import FluxEngine, FluxEngineConfig
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.engine.blocks import BlockEngine
from flux_endpoint.functions import ShellFunction, serialize_arguments
from flux_endpoint.protocol.messages import Result, unpack
from flux_endpoint.protocol.run_options import RunOptions
from flux_endpoint.serialize import ComputeSerializer, DillCodeSource

#: Seconds after which something that should happen counts as not happening.
PATIENCE = 60.0

_serializer = ComputeSerializer()
#: Functions of test modules travel as source: workers can't import those modules.
_by_source = ComputeSerializer(strategy_code=DillCodeSource())
#: Other processes run other tests at the same time, and some kill what they find by such a number.
_seconds = itertools.count((10**6 + os.getpid()) * 1000)


def buffer_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The packed task that a call becomes."""
    by = _serializer if isinstance(function, ShellFunction) else _by_source
    arguments = serialize_arguments(_serializer, function, args, kwargs)
    return _serializer.pack_buffers([by.serialize(function), *arguments])


class End:
    """A task's end, as its client will see it."""

    def __init__(self, body: bytes) -> None:
        message = unpack(body)
        assert isinstance(message, Result)
        self.message = message
        self.size = len(body)
        self.code = message.error_details.code if message.error_details else None
        self.text = message.data if self.code else ""

    @property
    def value(self) -> Any:
        assert self.code is None, self.text
        return _serializer.deserialize(self.message.data)

    def __repr__(self) -> str:
        return f"End({self.code}, {self.message.data[:1000]!r})"


class World:
    """A running engine and everything that it said.

    Args:
        kind: which executor runs its jobs.
        directory: the endpoint's.
        uri: see `FluxEngine`.
        lent: see `FluxEngine`.
        endpoint_id: whose it is; default: one of its own for each directory, as real endpoints
            have it: they know jobs and blocks in one Flux instance by their endpoint's id.
        recovers: tasks of before a restart: buffer and resource specification of each, by id.
        settles: whether each result is recorded as soon as it comes.
        config: options of the engine.
    """

    def __init__(
        self,
        kind: str,
        directory: Path,
        *,
        uri: str | None = None,
        lent: bool = False,
        endpoint_id: str | None = None,
        recovers: dict[str, tuple[str, dict[str, Any] | None]] | None = None,
        settles: bool = True,
        **config: Any,
    ) -> None:
        self.kind = kind
        self.directory = directory
        self.endpoint_id = endpoint_id or str(
            uuid.uuid5(uuid.NAMESPACE_URL, str(directory.resolve()))
        )
        self.config = FluxEngineConfig(executor=kind, **config)
        self.events: list[EngineEvent] = []
        self._results: dict[str, list[bytes]] = {}
        self._changed = threading.Condition()
        self.engine: FluxEngine | BlockEngine
        if self.config.blocks is not None:
            self.engine = BlockEngine(
                self.config, endpoint_id=self.endpoint_id, directory=directory
            )
        else:
            self.engine = FluxEngine(
                self.config,
                endpoint_id=self.endpoint_id,
                directory=directory,
                uri=uri,
                lent=lent,
            )
        #: Why the instance is gone, for each time that it was told.
        self.lost: list[str] = []
        self._settles = settles
        self.engine.start(self._on_result, self._on_event, self._on_lost)
        for task_id, (buffer, spec) in (recovers or {}).items():
            self.submit_buffer(buffer, spec, task_id=task_id)
        self.engine.recovered()

    def _on_result(self, result: EngineResult) -> None:
        with self._changed:
            self._results.setdefault(result.task_id, []).append(result.body)
            self._changed.notify_all()
        if self._settles:
            self.engine.settle([result.task_id])

    def _on_event(self, event: EngineEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def _on_lost(self, reason: str) -> None:
        with self._changed:
            self.lost.append(reason)
            self._changed.notify_all()

    def wait_lost(self) -> str:
        """Wait until the engine says that its instance is gone; return why."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.lost, PATIENCE)
        return self.lost[0]

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        spec: dict[str, Any] | None = None,
        serializers: list[str] | None = None,
        **kwargs: Any,
    ) -> str:
        """Submit a call, as a job if it has a `spec`; return the task's id."""
        return self.submit_buffer(buffer_of(function, *args, **kwargs), spec, serializers)

    def submit_buffer(
        self,
        buffer: str,
        spec: dict[str, Any] | None = None,
        serializers: list[str] | None = None,
        task_id: str | None = None,
        options: RunOptions | None = None,
        urgency: int | None = None,
    ) -> str:
        task_id = task_id or str(uuid.uuid4())
        function_id = str(uuid.UUID(int=1))
        task = EngineTask(
            task_id, function_id, buffer, spec, serializers, options=options, urgency=urgency
        )
        self.engine.submit(task)
        return task_id

    def attach(self, jobid: int) -> str:
        task_id = str(uuid.uuid4())
        self.engine.submit(EngineTask(task_id, str(uuid.UUID(int=1)), "", attach=jobid))
        return task_id

    def end(self, task_id: str, patience: float = PATIENCE) -> End:
        """Wait for the one end of a task."""
        return self.ends([task_id], patience)[0]

    def ends(self, task_ids: list[str], patience: float = PATIENCE) -> list[End]:
        with self._changed:
            done = self._changed.wait_for(
                lambda: all(task_id in self._results for task_id in task_ids), patience
            )
            missing = [task_id for task_id in task_ids if task_id not in self._results]
            assert done, f"{len(missing)} tasks without an end; {self.engine.status()}"
            for task_id in task_ids:
                assert len(self._results[task_id]) == 1, "a task has ended more than once"
            return [End(self._results[task_id][0]) for task_id in task_ids]

    def has_ended(self, task_id: str) -> bool:
        return task_id in self._results

    @property
    def ended(self) -> int:
        """How many tasks have ended."""
        return len(self._results)

    @property
    def repeated(self) -> int:
        """How many ends were told more than once."""
        return sum(len(bodies) - 1 for bodies in self._results.values())

    def wait_ended(self, count: int, patience: float) -> None:
        with self._changed:
            done = self._changed.wait_for(lambda: len(self._results) >= count, patience)
            assert done, f"{len(self._results)} of {count} tasks ended; {self.engine.status()}"

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> End:
        """Submit a call and wait for its end."""
        return self.end(self.submit(function, *args, **options))

    def event(self, task_id: str, name: str) -> EngineEvent:
        """Wait for an event of a task's job."""

        def found() -> EngineEvent | None:
            mine = (e for e in self.events if e.task_id == task_id and e.name == name)
            return next(mine, None)

        with self._changed:
            event = self._changed.wait_for(found, PATIENCE)
        assert event is not None, f"no event {name!r}, only {self.event_names(task_id)}"
        return event

    def follow(self, task_id: str, stream: str, text: str) -> tuple[int, str]:
        """Follow a task until it has written `text`; return the position then, and all it wrote."""
        position, whole = 0, ""
        deadline = time.monotonic() + PATIENCE
        while text not in whole:
            assert time.monotonic() < deadline, f"only {whole!r} was followed"
            with self._changed:  # as the service does it, over and over
                self.engine.follow_output(task_id, 30.0, (position, 0))
                self._changed.wait(1.0)
                events = [each for each in self.events if each.task_id == task_id]
            parts = [each.context[stream] for each in events if stream in each.context]
            for begin, end, part in parts:
                if begin == position:
                    position, whole = end, whole + part
        return position, whole

    def event_names(self, task_id: str) -> list[str]:
        return [event.name for event in self.events if event.task_id == task_id]

    def stop(self, grace: float = 0.0) -> None:
        self.engine.stop(grace)


def fresh_seconds() -> str:
    """A duration for `sleep` that no other process has: its name."""
    return str(next(_seconds))


def processes(word: str) -> list[psutil.Process]:
    """The living processes that have `word` in their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and any(word in part for part in process.cmdline()):
                found.append(process)
    return found


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that inherited the variable ENGINE_TEST_MARK with this value."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get("ENGINE_TEST_MARK") == mark:
                found.append(process)
    return found


def manager_processes(mark: str) -> list[psutil.Process]:
    """The managers (not their templates and workers) among the marked processes."""
    found = []
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            above = process.parent()
            if "flux_endpoint.engine.workers.manager" in process.cmdline() and (
                above is None or "flux_endpoint.engine.workers.manager" not in above.cmdline()
            ):
                found.append(process)
    return found


def lines_of(path: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().splitlines()
    return []


def task_body(task_id: str, buffer: str) -> bytes:
    return json.dumps([task_id, buffer]).encode()
