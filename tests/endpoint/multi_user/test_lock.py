"""A user endpoint begins when an earlier process of the same one has ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.endpoint.multi_user import user_endpoint
from flux_endpoint.processes import is_readable

EARLIER = """\
import sys
from flux_endpoint.endpoint.directory import AgentLock, EndpointDirectory
with AgentLock(EndpointDirectory("uep.one")):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_it_waits_for_the_end_of_the_process_that_has_the_lock(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del home
    directory = EndpointDirectory("uep.one")
    directory.path.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", EARLIER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as earlier:
        assert earlier.stdin is not None
        assert earlier.stdout is not None
        assert earlier.stdout.readline() == b"locked\n"
        waits = []

        def wait(descriptor: int, timeout: float) -> bool:
            earlier.stdin.close()  # type: ignore[union-attr]  # the earlier one ends now
            waits.append(is_readable(descriptor, timeout))
            return waits[-1]

        monkeypatch.setattr(user_endpoint, "is_readable", wait)
        with user_endpoint._lock(directory):
            assert waits == [True]
