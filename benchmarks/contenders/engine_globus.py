"""The official engines, as the official endpoint uses them: HTEX, and its variant for MPI."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, Task
from globus_compute_endpoint.engines import GlobusComputeEngine, GlobusMPIEngine
from globus_compute_endpoint.engines.base import GCFuture
from globus_compute_sdk import MPIFunction, ShellFunction
from globus_compute_sdk.serialize import ComputeSerializer
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider

from work import COMMAND, PATIENCE, WORKERS, Finish, Turn, large, same, went_well


class Engine:
    """Runs calls on an official engine.

    Args:
        turn: the order; with the option `mpi`, commands get a launcher.
    """

    def __init__(self, turn: Turn) -> None:
        one_block = {"init_blocks": 1, "min_blocks": 1, "max_blocks": 1}
        provider = LocalProvider(**one_block, launcher=SimpleLauncher())
        how: dict[str, Any] = {"label": "bench", "address": "127.0.0.1", "provider": provider}
        if turn.options["mpi"]:
            # The MPI engine reads its nodes from a batch job's file; this one has a single node.
            nodes = turn.directory / "nodes"
            nodes.write_text("localhost\n", encoding="utf-8")
            os.environ["PBS_NODEFILE"] = str(nodes)
            how |= {"mpi_launcher": "mpiexec", "max_workers_per_block": WORKERS}
            self._engine = GlobusMPIEngine(**how)
        else:
            self._engine = GlobusComputeEngine(**how, max_workers_per_node=WORKERS)
        self._serializer = ComputeSerializer()
        self._engine.start(endpoint_id=uuid.uuid4(), run_dir=str(turn.directory))

    def code(self, function: Callable[..., Any]) -> str:
        """Return a serialized function; clients serialize each function only once."""
        return str(self._serializer.serialize(function))

    def submit(self, code: str, *args: Any, spec: dict[str, Any] | None = None) -> Finish:
        """Submit a call."""
        parts = [code, self._serializer.serialize(args), self._serializer.serialize({})]
        buffer = self._serializer.pack_buffers(parts)
        task_id = uuid.uuid4()
        future = GCFuture(task_id)
        packed = messagepack.pack(Task(task_id=task_id, task_buffer=buffer))
        self._engine.submit(future, packed, resource_specification=spec or {})
        return lambda: self._value(future)

    def _value(self, future: GCFuture) -> Any:
        message = messagepack.unpack(future.result(PATIENCE))
        if not isinstance(message, Result) or message.is_error:
            raise RuntimeError(f"a task has failed: {message}")
        return self._serializer.deserialize(message.data)

    def stop(self) -> None:
        self._engine.shutdown()


def main() -> None:
    turn = Turn()
    engine = Engine(turn)
    codes = {f: engine.code(f) for f in (same, large)}
    command, mpi = engine.code(ShellFunction(COMMAND)), engine.code(MPIFunction(COMMAND))
    try:
        turn.functions(lambda function, *args: engine.submit(codes[function], *args))
        turn.rate("commands", lambda _: engine.submit(command), went_well)
        two = {"num_nodes": 1, "ranks_per_node": 2}
        turn.p50("mpi-p50", lambda _: engine.submit(mpi, spec=dict(two)), went_well)
        turn.rate("mpi", lambda _: engine.submit(mpi, spec=dict(two)), went_well)
    finally:
        engine.stop()


if __name__ == "__main__":
    main()
