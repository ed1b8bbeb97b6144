"""An endpoint whose agent is killed while its client's functions run: each completes once."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from flux_endpoint import Executor, ShellFunction
from waiting import until

pytestmark = [pytest.mark.stack, pytest.mark.rabbitmq]
PATIENCE = 120.0

SESSION = {"__name__": "__main__"}
exec(
    """
def work(directory, name, seconds):
    import time
    from pathlib import Path
    time.sleep(seconds)
    with Path(directory, "completed").open("a") as file:
        file.write(f"{name}\\n")
    return name
""",
    SESSION,
)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def kill_agent(home: Path) -> None:
    """Kill the agent, and wait until there is another."""
    lock = home / "endpoints" / "local" / "agent.lock"
    pid = json.loads(lock.read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: json.loads(lock.read_text() or "{}").get("pid", pid) != pid, PATIENCE)


def test_each_function_completes_once_though_the_agent_is_killed_again_and_again(home, tmp_path):
    completed = tmp_path / "completed"
    with Executor(endpoint_id=home.endpoint_id) as executor:
        futures = {
            f"f{n}": executor.submit(SESSION["work"], str(tmp_path), f"f{n}", n % 7 * 0.05)
            for n in range(200)
        }
        for n in range(20):
            command = ShellFunction(f"sleep 0.2; echo c{n} >> {completed}")
            futures[f"c{n}"] = executor.submit(command)
        for share in (0.1, 0.3, 0.5, 0.7):
            wanted = share * len(futures)
            until(lambda: len(lines(completed)) >= wanted, PATIENCE)  # noqa: B023 - called at once
            kill_agent(home.home)
        ends = {name: future.result(timeout=PATIENCE) for name, future in futures.items()}
    assert [name for name, end in ends.items() if name[0] == "f" and end != name] == []
    runs = Counter(lines(completed))
    assert runs.keys() == futures.keys()
    assert [name for name, count in runs.items() if count > 1] == []
