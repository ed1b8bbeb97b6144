"""What the ranks of a Python function leave for the agent, and what a task can leave instead."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from flux_endpoint.engine.jobs.collect import collect
from flux_endpoint.engine.jobs.exchange import rank_file
from flux_endpoint.engine.jobs.plan import RanksPlan
from flux_endpoint.engine.jobspec import JobRequest
from flux_endpoint.engine.outcome import Finished
from flux_endpoint.engine.task import Failure, Value
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES


def plan(directory: Path, ranks: int) -> RanksPlan:
    request = JobRequest(command=(), cwd=str(directory), environment={})
    return RanksPlan(request, directory, ranks, directory / "out", directory / "err")


def leave(directory: Path, rank: int, end: object) -> None:
    rank_file(directory, rank).write_text(json.dumps(end))


def test_the_values_of_all_ranks_are_one_in_their_order(tmp_path: Path) -> None:
    for rank in reversed(range(12)):
        leave(tmp_path, rank, {"data": f"11\n{rank}"})
    leave(tmp_path, 12, {"data": "11\n0"})  # of no rank of this job
    end = collect(plan(tmp_path, 12), Finished(0), None, (0, 0))
    assert isinstance(end, Value)
    assert json.loads(end.data[3:]) == list(range(12))


def test_a_huge_number_of_ranks_that_never_ran_is_handled_quickly(tmp_path: Path) -> None:
    leave(tmp_path, 1, {"data": "11\n1"})
    before = time.process_time()
    end = collect(plan(tmp_path, 2**31 - 1), Finished(1), None, (0, 0))
    assert time.process_time() - before < 5
    assert isinstance(end, Failure)
    assert "without a value: 0, 2, 3, " in end.text
    assert f", 100 and {2**31 - 102} more\n" in end.text


@pytest.mark.parametrize(
    "text",
    ["5", "[]", '{"data": 5}', '{"code": "no such", "text": "x"}', "{", "[" * 10**5, "\ufeff"],
)
def test_an_invalid_result_file_is_ignored(tmp_path: Path, text: str) -> None:
    rank_file(tmp_path, 0).write_text(text)
    end = collect(plan(tmp_path, 1), Finished(0), None, (0, 0))
    assert isinstance(end, Failure)
    assert "ranks without a value: 0\n" in end.text


def test_a_pipe_a_device_and_an_endless_file_are_ignored(tmp_path: Path) -> None:
    os.mkfifo(rank_file(tmp_path, 0))
    rank_file(tmp_path, 1).symlink_to("/dev/zero")
    with rank_file(tmp_path, 2).open("wb") as file:
        file.truncate(7 * MAX_PAYLOAD_BYTES)
    rank_file(tmp_path, 3).mkdir()
    end = collect(plan(tmp_path, 4), Finished(0), None, (0, 0))
    assert isinstance(end, Failure)
    assert "ranks without a value: 0, 1, 2, 3\n" in end.text
