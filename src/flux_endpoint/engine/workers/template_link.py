"""A manager's side of the template: requests workers, and learns of their starts and ends."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress

import psutil

from flux_endpoint.engine.workers.begun import record_begun
from flux_endpoint.engine.workers.frames import Claims, FrameSocket
from flux_endpoint.engine.workers.handle import WorkerChannel, WorkerHandle
from flux_endpoint.engine.workers.output_reader import OutputReader
from flux_endpoint.engine.workers.pipes import WorkerPipes
from flux_endpoint.engine.workers.process_tree import kill_tree
from flux_endpoint.engine.workers.settings import ManagerSettings
from flux_endpoint.engine.workers.template import request_worker, start_template

#: The most pending requests: the kernel queues only a few more.
_MAX_STARTING = 64


class TemplateLink:
    """The connection to the template of a node's workers.

    Args:
        settings: the manager's.
        output: gets the output of each worker.

    Raises:
        EngineError: the workers' gpus are not visible here.
    """

    def __init__(self, settings: ManagerSettings, output: OutputReader) -> None:
        begun = record_begun(settings.files.begun, settings.workers)
        self._pid, self._socket = start_template(settings, begun)
        self._output = output
        self._frames = FrameSocket(self._socket)
        self._starting: deque[WorkerHandle] = deque()
        self._free_places = list(range(settings.workers))
        #: Whether a worker has ended whose descendants may live on.
        self._has_orphans = False

    def fileno(self) -> int:
        """Return the descriptor to poll; then call `exits`."""
        return self._frames.fileno()

    def new_workers(self) -> Iterator[WorkerHandle]:
        """Request a worker for each free place; yield them before they have started."""
        while self._free_places and len(self._starting) < _MAX_STARTING:
            claims, pipes = Claims(), WorkerPipes.new()
            place = self._free_places.pop(0)
            channel = FrameSocket(request_worker(self._socket, claims, pipes, place))
            pipes.leave_writing_to_others()
            output = self._output.add(pipes)
            worker = WorkerHandle(WorkerChannel(channel), claims, output, place)
            self._starting.append(worker)
            yield worker

    def exits(self) -> Iterator[tuple[int, int]]:
        """Process the template's reports; yield each exited process with its wait status.

        Raises:
            EOFError: the template is gone.
        """
        for report, _ in self._frames.receive():
            if "forked" in report:
                self._starting.popleft().process.forked(report["forked"])
            else:
                yield report["exited"], report["status"]

    def replace(self, worker: WorkerHandle) -> None:
        """Free the place of a worker that has exited."""
        self._free_places.append(worker.place)
        self._has_orphans = True

    def end_orphans(self, workers: Iterable[WorkerHandle]) -> None:
        """Kill the descendants of dead workers, which now belong to the template.

        While a new worker's process id is unknown, the worker would look like one of them.

        Args:
            workers: those that live.
        """
        if not self._has_orphans or self._starting:
            return
        self._has_orphans = False
        pids = {worker.process.pid for worker in workers}
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._pid).children():
                if child.pid not in pids:
                    kill_tree(child.pid)

    def kill(self) -> None:
        """Kill the template and all workers; return when the template is gone."""
        with suppress(ChildProcessError):
            if os.waitpid(self._pid, os.WNOHANG) == (0, 0):
                kill_tree(self._pid)
                os.waitpid(self._pid, 0)
                return
        # It was lost: what tasks have started there belongs to this process now.
        for child in psutil.Process().children():
            kill_tree(child.pid)
