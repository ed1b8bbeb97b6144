"""Programs of the benchmark: what they run is run, and measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from engine_level import ENGINES
from peers import OURS, ContenderError, environment, run_program

COUNTS = {"functions": 8, "function-p50": 2, "commands": 4, "result-1000": 2}
JOBS = {"job-p50": 1, "jobs": 2}


@pytest.mark.flux
@pytest.mark.parametrize(
    ("key", "counts"),
    [
        ("flux", {**COUNTS, **JOBS}),
        ("embedded", {**COUNTS, **JOBS}),
        ("bare", JOBS),
        ("pool", {"functions": 8, "function-p50": 2}),
        ("chunks", {"functions": 70}),
        ("bash", {"commands": 4}),
    ],
)
def test_an_engine_answers_each_row(key, counts):
    engine = next(engine for engine in ENGINES if engine.key == key)
    answers = list(engine.take_turn(counts))
    assert {answer.row for answer in answers} == set(counts)
    assert {answer.contender for answer in answers} == {key}
    assert all(answer.value > 0 for answer in answers)


@pytest.mark.flux
def test_a_program_that_fails_says_how():
    options = {"executor": "warp"}
    with pytest.raises(ContenderError, match=r"(?s)engine_ours.py ended with status 1: .*warp"):
        list(run_program(OURS, "engine_ours.py", {"functions": 1}, options, environment(OURS)))
