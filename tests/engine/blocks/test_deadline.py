"""When a task may start in a block: pure arithmetic."""

from __future__ import annotations

import pytest
from engine_world import buffer_of

from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.blocks.deadline import end_time, refusal, start_before, walltime_of
from flux_endpoint.engine.config import BlocksConfig
from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_endpoint.protocol.resources import parse_resources

CONFIG = BlocksConfig(nodes_per_block=2, walltime="1h", grace="5m")
EXPIRES = 10_000.0


def double(x):
    return 2 * x


def walltime(function, *args, spec=None, **kwargs):
    task = EngineTask("task", "function", buffer_of(function, *args, **kwargs), spec)
    return walltime_of(task, parse_resources(spec or {}))


def test_a_task_without_a_walltime_may_start_until_the_block_begins_to_end():
    assert start_before(EXPIRES, None, CONFIG) == EXPIRES - 300


def test_a_task_with_a_walltime_starts_only_if_it_can_end_before_that():
    assert start_before(EXPIRES, 600, CONFIG) == EXPIRES - 300 - 600


def test_running_tasks_are_given_up_before_flux_ends_the_block():
    assert end_time(EXPIRES, CONFIG) == EXPIRES - 2
    assert end_time(EXPIRES, BlocksConfig(walltime=10, grace=2)) == EXPIRES - 0.5


@pytest.mark.parametrize(
    ("function", "spec", "seconds"),
    [
        (double, None, None),
        (double, {"num_nodes": 1}, None),
        (double, {"walltime": "10m"}, 600),
        (double, {"walltime": 0}, None),
        (ShellFunction("true"), None, None),
        (ShellFunction("true", walltime=30), None, 30),
        (ShellFunction("true", walltime=30), {"walltime": 20}, 20),
        (ShellFunction("true", walltime=30), {"walltime": "1m"}, 30),
        (MPIFunction("true", walltime=7), {"num_nodes": 2}, 7),
    ],
)
def test_the_walltime_is_the_shortest_that_is_given(function, spec, seconds):
    assert walltime(function, *([1] if function is double else []), spec=spec) == seconds


def test_the_walltime_of_a_command_is_known_though_its_arguments_are_python_s():
    assert walltime(ShellFunction("echo {x}", walltime=9), x={1, 2}) == 9


def test_a_task_longer_than_a_block_is_refused_with_the_numbers():
    refused = refusal(3600, parse_resources({}), CONFIG)
    assert refused is not None
    assert refused.startswith(
        "the task's walltime is 1h, and this endpoint's blocks run tasks of at most 55m: their "
        "walltime of 1h less a grace of 5m"
    )
    assert refusal(3300, parse_resources({}), CONFIG) is None
    assert refusal(None, parse_resources({}), CONFIG) is None


def test_a_task_with_more_nodes_than_a_block_is_refused_with_the_numbers():
    refused = refusal(None, parse_resources({"num_nodes": 3}), CONFIG)
    assert refused is not None
    assert "asks for 3 nodes, and a block of this endpoint has 2" in refused
    assert refusal(None, parse_resources({"num_nodes": 2}), CONFIG) is None
