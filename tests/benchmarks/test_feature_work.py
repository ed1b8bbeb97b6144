"""The rows of dependencies, retries and cache: each wanted one is measured, its values checked."""

from __future__ import annotations

import json
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from feature_work import FAILURES, measure
from work import Turn


def call(function, argument, attempts=1):
    """Call a function at once, up to `attempts` times."""
    future = Future()
    value = argument.result() if isinstance(argument, Future) else argument
    for _ in range(attempts):
        try:
            future.set_result(function(value))
            break
        except ConnectionError as error:
            last = error
    else:
        future.set_exception(last)
    return future


@pytest.fixture
def turn(tmp_path, monkeypatch):
    order = {
        "counts": {"chain": 5, "retries": 2},
        "answers": str(tmp_path / "answers"),
        "directory": str(tmp_path),
        "options": {},
    }
    monkeypatch.setattr(sys, "argv", ["program", json.dumps(order)])
    return Turn()


def test_each_wanted_row_has_an_answer(turn, tmp_path):
    measure(turn, chain=call, retry=lambda *a: call(*a, attempts=FAILURES + 1), cache=call)
    answers = [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines()]
    assert [answer["row"] for answer in answers] == ["chain", "retries"]
    assert all(answer["value"] > 0 for answer in answers)


def test_a_contender_that_does_not_retry_is_refused(turn):
    with pytest.raises(ConnectionError, match="on purpose"):
        measure(turn, chain=None, retry=call, cache=None)


def test_a_wrong_value_is_refused(turn):
    with pytest.raises(ValueError, match="has the value 1"):
        measure(turn, chain=lambda function, _: call(function, 0), retry=None, cache=None)
