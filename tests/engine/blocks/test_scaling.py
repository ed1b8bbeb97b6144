"""How many blocks there are: with the backlog, between the least and the most."""

from __future__ import annotations

import math

import pytest

from flux_endpoint.engine.blocks.scaling import BlockDemand, BlockView, decide
from flux_endpoint.engine.config import BlocksConfig

NOW = 1000.0


def config(**options):
    return BlocksConfig(**{"max_blocks": 4, "idle_timeout": 60, **options})


def coming(name="coming", idle_since=None):
    return BlockView(name, coming=True, idle_since=idle_since)


def busy(name="busy"):
    return BlockView(name, ready=True)


def idle(name="idle", since=NOW - 1):
    return BlockView(name, ready=True, idle_since=since)


def ending(name="ending"):
    return BlockView(name)


def decided(blocks, waiting=0, not_before=0.0, capacity=8, **options):
    demand = BlockDemand(waiting, capacity)
    return decide(config(**options), blocks, demand, now=NOW, not_before=not_before)


@pytest.mark.parametrize(
    ("waiting", "blocks"), [(0, 0), (1, 1), (8, 1), (9, 2), (24, 3), (1000, 4)]
)
def test_blocks_grow_with_the_backlog_up_to_the_most(waiting, blocks):
    assert decided([], waiting).start == blocks


def test_pending_blocks_count():
    assert decided([coming()], 8).start == 0
    assert decided([coming()], 9).start == 1


def test_blocks_that_end_still_count_as_blocks():
    assert decided([ending(), ending("other")], 1000).start == 2


def test_the_least_number_of_blocks_is_there_without_work():
    assert decided([], min_blocks=2).start == 2
    assert decided([busy()], min_blocks=2).start == 1
    assert decided([ending()], min_blocks=2).start == 2


def test_an_idle_block_ends_after_its_time():
    assert decided([idle(since=NOW - 59)]).end == ()
    assert decided([idle(since=NOW - 59)]).again == NOW + 1
    assert decided([idle(since=NOW - 60)]).end == ("idle",)


def test_the_least_number_of_blocks_stays_when_idle():
    old = [idle(str(n), NOW - 100) for n in range(3)]
    assert decided(old, min_blocks=2).end == ("0",)
    assert decided(old[:2], min_blocks=2).end == ()
    assert decided(old[:2], min_blocks=2).again == math.inf


def test_an_unneeded_pending_block_is_cancelled():
    assert decided([coming(idle_since=NOW - 60)]).end == ("coming",)


def test_an_idle_block_too_short_for_waiting_tasks_is_replaced():
    assert decided([idle()], 1, max_blocks=1).end == ("idle",)
    assert decided([idle()], 1, max_blocks=1, min_blocks=1).end == ("idle",)
    assert decided([busy()], 1, max_blocks=1).end == ()
    assert decided([idle()], 1, max_blocks=2).end == ()
    assert decided([idle()], 1, max_blocks=2).start == 1


def test_after_a_failure_nothing_is_started_before_its_time():
    decision = decided([], 8, not_before=NOW + 5)
    assert decision.start == 0
    assert decision.again == NOW + 5
    assert decided([], 8, not_before=NOW).start == 1
