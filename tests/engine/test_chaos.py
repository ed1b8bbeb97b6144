"""Many tasks while workers and a manager are being killed: every task ends exactly once."""

from __future__ import annotations

import contextlib
import os
import random

import psutil
from engine_world import buffer_of, manager_processes

#: FLUX_ENDPOINT_TEST_EXAMPLES sets a larger number, for a longer search.
TASKS = max(5_000, int(os.environ.get("FLUX_ENDPOINT_TEST_EXAMPLES", "0")))


def work(n):
    return n


def test_every_task_ends_exactly_once_whatever_is_killed(make_world, mark):
    world = make_world(max_nodes=2, max_retries_on_system_failure=50)
    chance = random.Random(7)
    buffer = buffer_of(work, 11)
    ids = [world.submit_buffer(buffer) for _ in range(TASKS)]
    for step in range(1, 11):
        world.wait_ended(TASKS * step // 12, 60.0)
        managers = manager_processes(mark)
        if step == 5 and managers:
            chance.choice(managers).kill()
            continue
        for manager in managers:
            with contextlib.suppress(psutil.NoSuchProcess):
                workers = [w for template in manager.children() for w in template.children()]
                if workers:
                    chance.choice(workers).kill()
    ends = world.ends(ids, 60.0)
    assert [end.code for end in ends if end.code] == []
    assert world.repeated == 0
    assert world.ended == TASKS
