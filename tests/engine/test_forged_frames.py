"""Tasks that write to their worker's connection affect only themselves."""

from __future__ import annotations

import json

import pytest
from engine_world import World

from flux_endpoint.engine import results
from flux_endpoint.engine.workers.frames import MAX_BODY, MAX_HEADER
from waiting import until

# What reads the frames is the same whatever has started the manager.
pytestmark = pytest.mark.parametrize("kind", ["local"], indirect=True)


def forge(headers, body=b"", raw=b"", seconds=0.5, times=1):
    """Write frames, or `raw`, to what connects the worker to its manager."""
    import json
    import os
    import struct
    import time
    from contextlib import suppress
    from pathlib import Path

    numbers = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(path.readlink()).startswith("socket:"):
                numbers.append(int(path.name))
    for number in numbers:
        for header in headers:
            text = json.dumps(header).replace("MYSELF", os.environ["GC_TASK_UUID"]).encode()
            own = body.replace(b"MYSELF", os.environ["GC_TASK_UUID"].encode())
            for _ in range(times):
                os.write(number, struct.pack("!IQ", len(text), len(own)) + text + own)
        if raw:
            os.write(number, raw)
    time.sleep(seconds)
    return len(numbers)


def manager():
    """Return who has started the template of this worker."""
    import os
    from pathlib import Path

    stat = Path(f"/proc/{os.getppid()}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def victim(path, name):
    """Note each run, and go on until there is a file of that name."""
    import time
    from pathlib import Path

    with Path(path).open("a") as file:
        file.write("begun\n")
    deadline = time.monotonic() + 60
    while not Path(name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return "as it should be"


def result_of(task_id: str, value: str = "forged") -> bytes:
    return results._body(task_id, value, None, None, [])


FRAMES = {
    "nothing": [{}],
    "an id alone": [{"id": "x"}],
    "an unknown id": [{"id": "x", "returncode": None}],
    "an id that is none": [{"id": ["x"], "returncode": None}],
    "its own id and no result": [{"id": "MYSELF", "returncode": None}],
    "an exit code that is none": [{"id": "MYSELF", "returncode": "0"}],
    "an unknown one is late": [{"late": "x"}],
    "it is late": [{"late": "MYSELF"}],
    "late and no id": [{"late": None}],
    "skipped": [{"skipped": "x"}],
    "another one writes": [{"writes": "x", "paths": ["/a", "/b"], "starts": [0, 0]}],
    "it writes to one file": [{"writes": "MYSELF", "paths": ["/a"], "starts": [0, 0]}],
    "it writes before a file": [{"writes": "MYSELF", "paths": ["/a", "/b"], "starts": [0, -1]}],
    "skipped often": [{"skipped": "x"}] * 40,
    "leaves": [{"leaves": "because"}],
    "leaves for no reason": [{"leaves": None}],
}


@pytest.mark.parametrize("what", FRAMES)
def test_a_forged_frame_ends_neither_the_manager_nor_another_task(world: World, tmp_path, what):
    before = world.call(manager).value
    runs, end = tmp_path / "runs", tmp_path / "end"
    other = world.submit(victim, str(runs), str(end))
    until(runs.exists)
    assert world.call(forge, FRAMES[what]).code == "WorkerLost"
    # Both workers of the node serve again.
    second = world.submit(victim, str(tmp_path / "second"), str(end))
    until((tmp_path / "second").exists)
    end.touch()
    assert [each.value for each in world.ends([other, second])] == ["as it should be"] * 2
    assert runs.read_text() == "begun\n"
    assert world.call(manager).value == before


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 64,
        b"\xff" * 12,
        (MAX_HEADER + 1).to_bytes(4, "big") + bytes(8),
        (2).to_bytes(4, "big") + (MAX_BODY + 1).to_bytes(8, "big"),
        (2).to_bytes(4, "big") + bytes(8) + b"[]",
        b"not at all a frame of any kind",
    ],
)
def test_invalid_frames_end_the_worker_at_once(world: World, raw):
    before = world.call(manager).value
    end = world.call(forge, [], raw=raw, seconds=60)
    assert end.code == "WorkerLost"
    assert "written to the worker's connection" in end.text
    assert world.call(manager).value == before


def test_a_task_can_not_report_the_end_of_another(world: World, tmp_path):
    runs, end = tmp_path / "runs", tmp_path / "end"
    other = world.submit(victim, str(runs), str(end))
    until(runs.exists)
    forged = result_of(other)
    for header in ({"id": other, "returncode": 0}, {"id": "MYSELF", "returncode": 0}):
        assert world.call(forge, [header], body=forged).code == "WorkerLost"
    own = forged.replace(other.encode(), b"MYSELF")
    twice = own[:-2] + b',"task\\u005fid":"%b"}}' % other.encode()
    assert world.call(forge, [{"id": "MYSELF", "returncode": 0}], body=twice).code == "WorkerLost"
    assert not world.has_ended(other)
    end.touch()
    assert world.end(other).value == "as it should be"
    assert runs.read_text() == "begun\n"


def test_a_task_that_reports_its_end_early_does_not_block_others(world: World, tmp_path):
    body = result_of("MYSELF", json.dumps("early"))
    early = [
        world.submit(forge, [{"id": "MYSELF", "returncode": 0}], body=body, seconds=120)
        for _ in range(2)
    ]
    assert all(end.message.data == '"early"' for end in world.ends(early))
    # Both workers are taken by who is not known to run any more.
    assert world.call(manager).value
    assert world.ended == len(set(world._results))
    again = [world.submit(uuid_text) for _ in range(4)]
    assert len({end.value for end in world.ends(again)}) == 4


def uuid_text():
    import uuid

    return str(uuid.uuid4())


def test_an_end_that_is_reported_twice_counts_once(world: World):
    body = result_of("MYSELF", "first")
    header = {"id": "MYSELF", "returncode": 0}
    task_id = world.submit(forge, [header], body=body, times=3, seconds=0)
    assert world.end(task_id).message.data == "first"
    assert world.call(uuid_text).code is None
    assert world.repeated == 0


def test_a_counter_forged_by_a_task_blocks_no_other(world: World):
    before = world.call(manager).value

    def count(much):
        import os
        import time
        from contextlib import suppress
        from pathlib import Path

        for path in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                if "eventfd" in str(path.readlink()):
                    os.eventfd_write(int(path.name), much)
        time.sleep(1.5)

    for much in (2**40, 2**64 - 3):
        assert world.call(count, much).code == "WorkerLost"
        assert world.call(manager).value == before
