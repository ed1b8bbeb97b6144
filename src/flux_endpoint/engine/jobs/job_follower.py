"""Reports what the jobs of followed tasks write, while they run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

from flux_endpoint.engine.base import EngineEvent, output_event
from flux_endpoint.engine.written_output import FollowedFiles, WrittenOutput
from flux_endpoint.owner_thread import OwnerThread


class JobFollower:
    """Follows the output files of jobs, on its own thread: a file system may be slow.

    Used by the job runner's thread. The thread starts with the first request.

    Args:
        most: the most bytes of each stream of a task that are reported at once.
        on_event: called with what was written; see `job_events.OUTPUT_EVENT`.
    """

    def __init__(self, most: int, on_event: Callable[[EngineEvent], None]) -> None:
        self._files = FollowedFiles(most)
        self._on_event = on_event
        self._thread: OwnerThread | None = None

    def follow(
        self, task_id: str, output: WrittenOutput, seconds: float, known: tuple[int, int]
    ) -> None:
        """Report what a task writes for `seconds`, from the positions in `known` on."""
        output.was_followed = True
        if self._thread is None:
            self._thread = OwnerThread("job-output", after_turn=self._look)
            self._thread.start()
        self._thread.post(partial(self._files.follow, task_id, output, seconds, known))

    def opened(self, output: WrittenOutput) -> None:
        """Look at the files of a job from now on: it has its resources."""
        if not output.is_open:
            output.is_open = True
            if self._thread is not None and output.was_followed:
                self._thread.post(lambda: None)  # after which it looks

    def forget(self, task_id: str) -> None:
        """Follow a task no longer: its job has ended."""
        if self._thread is not None:
            self._thread.post(partial(self._files.forget, task_id))

    def close(self) -> None:
        """Report nothing more."""
        if self._thread is not None:
            self._thread.stop()

    def _look(self) -> float:
        """Report what is due; return the seconds until the next look."""
        for task_id, parts in self._files.look():
            self._on_event(output_event(task_id, parts))
        due = self._files.due
        return due if math.isinf(due) else max(0.0, due - time.monotonic())
