"""`FluxEngine` with the interface of the official endpoint's engines (release 4.19)."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

from globus_compute_common.messagepack.message_types import EPStatusReport
from globus_compute_endpoint.endpoint.result_store import ResultStore
from globus_compute_endpoint.engines.base import GCFuture, GlobusComputeEngineBase

from flux_endpoint import logs
from flux_endpoint.engine import FluxEngine as Engine
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.errors import EngineError, RecordError
from flux_endpoint.integrations.globus_compute.ends import official_end, read_task
from flux_endpoint.integrations.globus_compute.options import read_options
from flux_endpoint.integrations.globus_compute.record import KEPT_AT_STOP, PluginTaskRecord
from flux_endpoint.protocol.jobid import format_jobid

log = logging.getLogger(__name__)

#: The logger whose handlers the official endpoint has configured.
_THEIR_LOGGER = "globus_compute_endpoint"
#: Events of a job that show its state.
_PLACING = frozenset({"submit", "start"})


class FluxEngine(GlobusComputeEngineBase):  # type: ignore[misc]  # that package is not here to check
    """Runs an official endpoint's tasks on Flux, like this project's own endpoints.

    Args:
        endpoint_id: the endpoint's UUID, if it is known before `start`.
        options: see `PluginOptions`.

    Raises:
        ValueError: an option is invalid; the text names it, and says what is valid.
    """

    def __init__(self, *, endpoint_id: UUID | None = None, **options: Any) -> None:
        self.options = read_options(_plain(options))
        super().__init__(
            endpoint_id=endpoint_id,
            max_retries_on_system_failure=self.options.max_retries_on_system_failure,
            working_dir=self.options.working_dir,
            allowed_serializers=self.options.allowed_serializers,
        )
        self.label = self.options.label
        self.run_in_sandbox = self.options.run_in_sandbox
        self._engine: Engine | None = None
        self._record: PluginTaskRecord | None = None
        self._store: ResultStore | None = None
        #: The socket of the Flux instance, which exists as long as the instance.
        self._socket: Path | None = None
        self._end_is_told = False
        self._total_tasks = 0
        self._lock = threading.Lock()
        #: Unfinished tasks; `None`: a task of an earlier process, which nobody waits for here.
        self._futures: dict[str, GCFuture | None] = {}
        #: Results of an earlier process, for tasks that the broker delivers again.
        self._earlier: dict[str, bytes] = {}

    def __repr__(self) -> str:
        given = self.options.model_dump(exclude_defaults=True)
        return f"FluxEngine({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def assert_ha_compliant(self) -> NoReturn:
        """Refuse High Assurance, for which the engine has not been assessed.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "FluxEngine has not been assessed for High Assurance: the traffic between endpoint and "
            "workers is encrypted, but what jobs write into the endpoint's directory is not"
        )

    def start(
        self, *_: object, endpoint_id: UUID | str, run_dir: str | Path, **_options: object
    ) -> None:
        """Start, and resume the work of an earlier process.

        Raises:
            EngineError: it can't start; the text says what to do.
            RecordError: the record of accepted tasks can't be opened or read.
        """
        _show_logs(self.label)
        self.endpoint_id = UUID(str(endpoint_id))
        directory = Path(run_dir).absolute()
        self.run_dir = str(directory)
        self.set_working_dir(self.run_dir)
        own = directory / "engine"
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store = ResultStore(endpoint_dir=directory)
        self._record = PluginTaskRecord(own / "tasks.db")
        config = self.options.model_dump(include=set(FluxEngineConfig.model_fields))
        engine = Engine(
            FluxEngineConfig(**config), endpoint_id=str(self.endpoint_id), directory=directory
        )
        try:
            engine.start(self._finished, self._happened)
        except BaseException:
            self._record.close()
            raise
        if engine.status()["executor"] == "flux":
            self._socket = _socket_of(os.environ.get("FLUX_URI", ""))
        self._engine = engine
        self._engine_ready = True
        self._go_on(self._record)

    def _go_on(self, record: PluginTaskRecord) -> None:
        results, tasks = record.fresh_results(), record.unfinished()
        for result in results:
            self._earlier[result.task_id] = result.body
            self._keep(result)
        for task in tasks:
            self._futures[task.task_id] = None
        for task in tasks:
            self._running_engine().submit(task)
        self._running_engine().recovered()
        if results or tasks:
            logs.event(
                log,
                logging.WARNING,
                "resuming the unfinished work of an earlier process of this endpoint",
                tasks=len(tasks),
                results=len(results),
            )

    def submit(
        self,
        task_f: GCFuture,
        packed_task: bytes,
        resource_specification: dict[str, Any] | None = None,
        result_serializers: list[str] | None = None,
    ) -> None:
        """Take a task. `task_f` gets its packed result, even if the message has no task.

        `task_f` gets the task's number as its `executor_task_id`. If the task becomes a job of its
        own, the job's id becomes its `job_id`, and its `block_id` once it runs.

        Raises:
            EngineError: the engine does not run.
            RecordError: the task can't be recorded.
        """
        self._ensure_ready()
        task_id = str(task_f.gc_task_id)
        message = read_task(task_id, packed_task)
        if isinstance(message, bytes):
            task_f.set_result(message)
            return
        task = EngineTask(
            task_id,
            str(task_f.function_id),
            message.task_buffer,
            resource_specification or None,
            list(result_serializers or ()) or None,
        )
        with self._lock:
            self._total_tasks += 1
            number = self._total_tasks
            known = task_id in self._futures
            self._futures[task_id] = task_f
            answered = self._earlier.pop(task_id, None)
        if answered is not None:
            self._finished(EngineResult(task_id, answered))
        elif not known:
            self._accept(task)
        task_f.executor_task_id = number

    def _accept(self, task: EngineTask) -> None:
        engine, record = self._running_engine(), self._record
        try:
            # The broker delivers all unacknowledged tasks again, whether they have ended or not.
            ended = None if record is None else record.result(task.task_id)
            if ended is None:
                if record is not None:
                    record.accept(task)
                engine.submit(task)
        except BaseException:
            with self._lock:
                self._futures.pop(task.task_id, None)
            raise
        if ended is not None:
            self._finished(EngineResult(task.task_id, ended))

    def _running_engine(self) -> Engine:
        if self._engine is None:
            raise EngineError("the engine is not running")
        return self._engine

    def _submit(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError("this engine takes whole tasks, in `submit`")

    # Called by the engine's threads

    def _happened(self, event: EngineEvent) -> None:
        if event.jobid is None or event.name not in _PLACING:
            return
        with self._lock:
            future = self._futures.get(event.task_id)
        if future is not None and not future.done():
            future.job_id = format_jobid(event.jobid)
            if event.name == "start":
                future.block_id = future.job_id

    def _finished(self, result: EngineResult) -> None:
        result = EngineResult(result.task_id, official_end(result.body))
        if self._record is not None:
            try:
                self._record.finish(result)
            except RecordError as error:  # the result is delivered, at worst twice
                logs.event(log, logging.ERROR, str(error), task=result.task_id)
        engine = self._engine  # another thread may stop it in the meantime
        if engine is not None:
            engine.settle([result.task_id])
        with self._lock:
            future = self._futures.pop(result.task_id, None)
        if future is None:
            self._keep(result)
        elif not future.done():
            future.set_result(result.body)

    def _keep(self, result: EngineResult) -> None:
        """Store a result where the official endpoint looks for unpublished ones."""
        if self._store is None:
            return
        # It may read any file without a leading dot at any moment: the file must appear complete.
        partial = self._store.data_path / f".{result.task_id}"
        partial.write_bytes(result.body)
        partial.replace(self._store.data_path / result.task_id)

    # Other requests of the official endpoint

    def get_status_report(self) -> EPStatusReport:
        """Return the engine's counters, with the official names where they exist."""
        status = self._engine.status() if self._engine is not None else {}
        return EPStatusReport(
            endpoint_id=self.endpoint_id,
            global_state={
                **status,
                "engine_type": "FluxEngine",
                "provider_type": status.get("executor"),
                "total_tasks": self._total_tasks,
                "outstanding_tasks": len(self._futures),
                "scaling_enabled": True,
                # As if all workers were on one node, because they start and end one by one.
                "max_blocks": 1,
                "min_blocks": 0,
                "nodes_per_block": 1,
                "max_workers_per_node": status.get("max_workers"),
            },
            task_statuses={},
        )

    @property
    def executor_exception(self) -> EngineError | None:
        """Why nothing can run any more; the endpoint checks this twice a second, and ends."""
        if self._socket is None or self._socket.exists():
            return None
        error = EngineError(
            f"the Flux instance has ended: {self._socket} is gone. Start the endpoint again where "
            "there is one"
        )
        if not self._end_is_told:  # after this the endpoint ends, perhaps before it logs the reason
            self._end_is_told = True
            logs.event(log, logging.ERROR, str(error))
        return error

    def shutdown(self, /, **_: object) -> None:
        """Let running tasks finish for a while; the next start resumes the others."""
        engine, self._engine = self._engine, None
        self._engine_ready = False
        if engine is None:
            return
        if self._record is not None:
            self._record.forget(KEPT_AT_STOP)
        engine.stop(self.options.shutdown_grace)
        if self._record is not None:
            self._record.close()
            self._record = None


def _socket_of(uri: str) -> Path | None:
    """Return the path in a `local://` URI of Flux; `None` for other URIs."""
    scheme, _, path = uri.partition("://")
    return Path(path) if scheme == "local" and path else None


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Return options with strategies as names: a `config.py` may have the classes."""
    allowed = options.get("allowed_serializers")
    if allowed is None:
        return options
    names = [
        item if isinstance(item, str) else f"{item.__module__}.{getattr(item, '__name__', item)}"
        for item in allowed
    ]
    return {**options, "allowed_serializers": names}


class _Forward(logging.Handler):
    """Forwards our log records, with their fields, to the official endpoint's log."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self._target = logging.getLogger(f"{_THEIR_LOGGER}.{label}")

    def emit(self, record: logging.LogRecord) -> None:
        target = self._target
        if target.isEnabledFor(record.levelno):
            target.log(record.levelno, "%s", logs.message_of(record), exc_info=record.exc_info)


def _show_logs(label: str) -> None:
    ours = logging.getLogger("flux_endpoint")
    if not any(isinstance(handler, _Forward) for handler in ours.handlers):
        ours.addHandler(_Forward(label))
        ours.propagate = False
        ours.setLevel(logging.getLogger(_THEIR_LOGGER).getEffectiveLevel())
