"""Our engine, as an endpoint's agent uses it: on Flux or on the embedded executor."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from flux_endpoint.engine import FluxEngine, FluxEngineConfig
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.functions import MPIFunction, ShellFunction, serialize_arguments
from flux_endpoint.protocol.messages import Result, unpack
from flux_endpoint.serialize import ComputeSerializer
from work import COMMAND, PATIENCE, WORKERS, Finish, Turn, large, same, went_well

_ID = str(uuid.UUID(int=1))


class Engine:
    """Runs calls on our engine.

    Args:
        kind: the executor of jobs, "flux" or "local".
        directory: the endpoint's directory.
    """

    def __init__(self, kind: str, directory: Path) -> None:
        config = FluxEngineConfig.model_validate(
            {"executor": kind, "max_workers": WORKERS, "local_cores_per_node": WORKERS}
        )
        self._serializer = ComputeSerializer()
        self._open: dict[str, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._engine = FluxEngine(config, endpoint_id=_ID, directory=directory)
        self._engine.start(self._on_result)
        self._engine.recovered()

    def code(self, function: Callable[..., Any]) -> str:
        """Return a serialized function; clients serialize each function only once."""
        return self._serializer.serialize(function)

    def submit(
        self,
        code: str,
        function: Callable[..., Any],
        *args: Any,
        spec: dict[str, Any] | None = None,
    ) -> Finish:
        """Submit a call; with a `spec`, it becomes a job."""
        arguments = serialize_arguments(self._serializer, function, args, {})
        buffer = self._serializer.pack_buffers([code, *arguments])
        task_id = str(uuid.uuid4())
        future: Future[bytes] = Future()
        with self._lock:
            self._open[task_id] = future
        self._engine.submit(EngineTask(task_id, _ID, buffer, spec))
        return lambda: self._value(future)

    def _value(self, future: Future[bytes]) -> Any:
        message = unpack(future.result(PATIENCE))
        if not isinstance(message, Result) or message.error_details is not None:
            raise RuntimeError(f"a task has failed: {message}")
        return self._serializer.deserialize(message.data)

    def _on_result(self, result: EngineResult) -> None:
        with self._lock:
            future = self._open.pop(result.task_id)
        future.set_result(result.body)
        self._engine.settle([result.task_id])

    def stop(self) -> None:
        self._engine.stop(0)


def main() -> None:
    turn = Turn()
    engine = Engine(turn.options["executor"], turn.directory)
    command, mpi = ShellFunction(COMMAND), MPIFunction(COMMAND)
    codes = {f: engine.code(f) for f in (same, large, command, mpi)}

    def submit(function: Callable[..., Any], *args: Any, **spec: Any) -> Finish:
        return engine.submit(codes[function], function, *args, spec=spec or None)

    try:
        turn.functions(submit)
        turn.rate("commands", lambda _: submit(command), went_well)
        one = {"num_nodes": 1, "ranks_per_node": 1}
        turn.p50("job-p50", lambda _: submit(command, **one), went_well)
        turn.rate("jobs", lambda _: submit(command, **one), went_well)
        two = {"num_nodes": 1, "ranks_per_node": 2}
        turn.p50("mpi-p50", lambda _: submit(mpi, **two), went_well)
        turn.rate("mpi", lambda _: submit(mpi, **two), went_well)
    finally:
        engine.stop()


if __name__ == "__main__":
    main()
