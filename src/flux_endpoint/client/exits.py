"""The end of the interpreter: what was submitted is still sent, and nothing is waited for."""

from __future__ import annotations

import atexit
import time
import weakref

from flux_endpoint.client.fork import Birthplace
from flux_endpoint.client.streams import end_event_streams
from flux_endpoint.client.submitter import Submitter
from flux_endpoint.client.threads import janitor

#: Seconds that tasks still waiting at the interpreter's exit get to be sent.
EXIT_FLUSH = 5.0

_submitters: weakref.WeakKeyDictionary[Submitter, Birthplace] = weakref.WeakKeyDictionary()


def see_to_the_end(executor: object, submitter: Submitter) -> None:
    """Close `submitter` when nobody holds `executor` any more, or when the interpreter exits."""
    birthplace = Birthplace()
    _submitters[submitter] = birthplace
    janitor.start()  # an Executor that nobody holds any more is shut down without waiting

    def close() -> None:
        if birthplace.is_here():
            submitter.close()

    weakref.finalize(executor, janitor.leave, close).atexit = False


def end_all() -> None:
    """Shut down all Executors: what was submitted gets a few seconds to be sent, results none."""
    # In a forked child the parent's have no threads, and perhaps locks that nobody will release.
    submitters = [each for each, birthplace in _submitters.items() if birthplace.is_here()]
    for submitter in submitters:
        submitter.close()
    deadline = time.monotonic() + EXIT_FLUSH
    for submitter in submitters:
        submitter.flush(max(0.0, deadline - time.monotonic()))
    end_event_streams(max(0.0, deadline - time.monotonic()))


atexit.register(end_all)
