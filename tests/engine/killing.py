"""Engines that are killed, and the next ones: what the tests of that share."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine_world import PATIENCE, End, buffer_of, lines_of

from waiting import until

PROGRAM = Path(__file__).with_name("killed_engine.py")


def work(directory: str, name: str, seconds: float) -> str:
    """Note its begin and its end, and take so long."""
    import time
    from pathlib import Path

    with Path(directory, "begun").open("a") as file:
        file.write(f"{name}\n")
    time.sleep(seconds)
    with Path(directory, "completed").open("a") as file:
        file.write(f"{name}\n")
    return name


class Endpoint:
    """One endpoint's directory and tasks; engines for it come and are killed.

    Args:
        kind: which executor runs its jobs.
        directory: the endpoint's.
        config: options of its engine.
    """

    def __init__(self, kind: str, directory: Path, **config: Any) -> None:
        self.kind = kind
        self.directory = directory
        self.config = config
        self.tasks: dict[str, tuple[str, dict[str, Any] | None]] = {}
        #: Each task's function writes a line with its name here at its start, and at its end.
        self.begun, self.completed = directory / "begun", directory / "completed"

    def add(
        self,
        function: Callable[..., Any],
        *args: Any,
        spec: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> str:
        """Add a task to the journal; return its id."""
        task_id = str(uuid.uuid4())
        self.tasks[task_id] = (buffer_of(function, *args, **kwargs), spec)
        return task_id

    def add_work(self, name: str, seconds: float) -> str:
        """Add a function that notes when it begins and completes; return its task's id."""
        return self.add(work, str(self.directory), name, seconds)

    def start(
        self,
        dies_at: str | None = None,
        orphan_timeout: float | None = None,
        patience: float | None = None,
        *,
        is_late: bool = False,
    ) -> subprocess.Popen[str]:
        """Start an engine, and return when it has all tasks, or has killed itself.

        Args:
            dies_at: where it kills itself.
            orphan_timeout: seconds for which its managers wait for another.
            patience: seconds that it waits for managers of before.
            is_late: whether these report before it has submitted all tasks.
        """
        settings = self.directory / f"settings-{uuid.uuid4().hex[:8]}.json"
        content = {
            "kind": self.kind,
            "directory": str(self.directory),
            "config": self.config,
            "tasks": self.tasks,
            "dies_at": dies_at,
            "orphan_timeout": orphan_timeout,
            "patience": patience,
            "is_late": is_late,
        }
        settings.write_text(json.dumps(content))
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(settings)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == "recovered\n" or (dies_at is not None and process.wait(PATIENCE) == -9)
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def await_death(self, process: subprocess.Popen[str]) -> None:
        """Wait until an engine has killed itself."""
        assert process.wait(PATIENCE) == -9
        assert process.stdout is not None
        process.stdout.close()

    def finish(self, process: subprocess.Popen[str], patience: float = PATIENCE) -> None:
        """Wait until an engine has all results, and has stopped."""
        assert process.wait(patience) == 0
        assert process.stdout is not None
        process.stdout.close()

    def end(self, task_id: str) -> End:
        return End((self.directory / "results" / task_id).read_bytes())

    def recorded(self) -> int:
        """Return how many results are recorded."""
        results = self.directory / "results"
        return sum(1 for each in results.glob("*") if not each.name.startswith("."))

    def runs(self) -> Counter[str]:
        """Return how often the function of each name has completed."""
        return Counter(lines_of(self.completed))

    def await_begun(self, count: int) -> None:
        until(lambda: len(lines_of(self.begun)) >= count)
