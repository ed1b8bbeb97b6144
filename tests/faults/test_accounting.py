"""The harness of `make faults` finds what must not be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from accounting import Task, account, read_evidence, table


def task(kind: str = "function", **what: list) -> Task:
    defaults = {"begun": [1.0], "completed": [2.0], "delivered": [""]}
    return Task(kind, **(defaults | what))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"delivered": []}, "a was lost: it has no end"),
        ({"delivered": ["", ""]}, "a was delivered 2 times"),
        ({"delivered": ["ValueError"]}, "a ended wrongly: ValueError"),
        ({"completed": []}, "a has a value and never completed"),
        (
            {"begun": [1, 5], "completed": [2, 6]},
            "a completed, and began again 3.00 s later",
        ),
    ],
)
def test_a_broken_promise_is_named(wrong, said):
    assert account({"a": task(), "b": task("job")}, []).broken == []
    assert account({"a": task(**wrong), "b": task("job")}, []).broken == [said]


def test_an_allowed_rerun_breaks_no_promise():
    cut_off = task(begun=[1.0, 1.5], completed=[2.0])
    killed = task(begun=[1.0, 5.0], completed=[2.0, 6.0])
    found = account({"a": cut_off, "b": killed}, [2.01])
    assert found.broken == []
    assert (found.rows["function"].begun_again, found.rows["function"].completed_again) == (2, 1)
    assert account({"b": killed}, [-5.0, 9.0]).broken != []


def test_evidence_is_read_and_an_incomplete_line_is_ignored():
    tasks = {"job-1": Task("job")}
    lines = ["job-1 begun 1.5", "job-1 completed 2.5", "job-1 beg", "x", "job-2 begun 1"]
    read_evidence(lines, tasks)
    assert (tasks["job-1"].begun, tasks["job-1"].completed) == ([1.5], [2.5])
    assert "job" in table(account(tasks, []).rows)


@pytest.mark.stack
@pytest.mark.rabbitmq
@pytest.mark.timeout(420)
def test_a_short_run_accounts_for_every_task():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("harness.py")),
         "--executor", "local", "--seconds", "8", "--tasks", "30", "--seed", "7"],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 7" in done.stdout
    assert "30 tasks, each accounted for" in done.stdout
