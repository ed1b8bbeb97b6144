"""Decoders hold for their seeds, for what fuzzing has found, and for some damage done to these."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
from tests.fuzz.targets import TARGETS

FOUND = Path(__file__).with_name("found")
#: Damaged inputs for each good one.
DAMAGED = 300


@pytest.fixture(autouse=True)
def no_logs():
    """Logs quote what came in, which pytest's own processes can't hand over."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def found() -> list[tuple[str, Path]]:
    return [(path.parent.name, path) for path in sorted(FOUND.glob("*/*"))]


@pytest.mark.parametrize("name", TARGETS)
def test_a_seed_is_valid(name):
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize(("name", "path"), found(), ids=lambda value: getattr(value, "name", value))
def test_inputs_found_by_fuzzing_stay_fixed(name, path):
    TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_input_raises_only_the_decoders_errors(name):
    target = TARGETS[name]
    dice = random.Random(name)
    words = [word.encode() for word in target.words] or [b"0"]
    for seed in target.seeds:
        for _ in range(DAMAGED):
            data = bytearray(seed)
            for _ in range(dice.randint(1, 4)):
                at = dice.randrange(len(data) + 1)
                end = min(len(data), at + dice.choice((0, 0, 1, 2, 8)))
                new = dice.choice((b"", bytes([dice.randrange(256)]), dice.choice(words)))
                data[at:end] = new * dice.choice((1, 1, 1, 50))
            target(bytes(data))
