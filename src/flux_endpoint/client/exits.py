"""Ends Executors when the interpreter exits: sends submitted tasks, does not wait for results."""

from __future__ import annotations

import atexit
import time
import weakref

from flux_endpoint.client.bulk.stream import end_call_streams
from flux_endpoint.client.fork import Birthplace
from flux_endpoint.client.streams import end_event_streams
from flux_endpoint.client.submitter import Submitter
from flux_endpoint.client.threads import janitor

#: Time (s) at the interpreter's exit for sending the tasks that were not sent yet.
EXIT_FLUSH = 5.0

_submitters: weakref.WeakKeyDictionary[Submitter, Birthplace] = weakref.WeakKeyDictionary()


def close_with_executor(executor: object, submitter: Submitter) -> None:
    """Close a submitter when its Executor is garbage collected or the interpreter exits.

    Args:
        executor: the Executor.
        submitter: its submitter.
    """
    birthplace = Birthplace()
    _submitters[submitter] = birthplace
    janitor.start()  # closes it without blocking the garbage collector

    def close() -> None:
        if birthplace.is_here():
            submitter.close()

    weakref.finalize(executor, janitor.leave, close).atexit = False


def shut_down_all() -> None:
    """Shut down all Executors; give unsent tasks a few seconds, don't wait for results."""
    # In a forked child, the parent's submitters have no threads, and their locks may be held.
    submitters = [each for each, birthplace in _submitters.items() if birthplace.is_here()]
    for submitter in submitters:
        submitter.close()
    deadline = time.monotonic() + EXIT_FLUSH
    for submitter in submitters:
        submitter.flush(max(0.0, deadline - time.monotonic()))
    # First, since they follow jobs that go on, and would not end by themselves.
    end_event_streams(max(0.0, deadline - time.monotonic()))
    end_call_streams(max(0.0, deadline - time.monotonic()))
    for submitter in submitters:
        submitter.join(max(0.0, deadline - time.monotonic()))


atexit.register(shut_down_all)
