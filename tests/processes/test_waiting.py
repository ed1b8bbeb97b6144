"""Waiting for one descriptor."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time

import pytest

from flux_endpoint.processes import is_readable

#: The first number that `select.select` refuses.
SETSIZE = 1024


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_readable_descriptor_is_reported_at_once(pipe):
    reader, writer = pipe
    assert not is_readable(reader, 0)
    os.write(writer, b"x")
    assert is_readable(reader, 60)


def test_an_expired_timeout_checks_without_waiting(pipe):
    began = time.monotonic()
    assert not is_readable(pipe[0], -1)
    assert time.monotonic() - began < 30


def test_a_descriptor_may_have_any_number(pipe):
    reader, writer = pipe
    try:
        high = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, SETSIZE)
    except OSError:
        pytest.skip(f"this process may not have descriptors above {SETSIZE - 1}")
    try:
        os.write(writer, b"x")
        assert is_readable(high, 60)
    finally:
        os.close(high)


def test_a_process_that_ends_is_readable():
    process = subprocess.Popen(["sleep", "0.1"])
    pidfd = os.pidfd_open(process.pid)
    try:
        assert is_readable(pidfd, 60)
    finally:
        os.close(pidfd)
    assert process.wait() == 0
