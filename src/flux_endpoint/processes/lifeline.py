"""Notice the death of the parent process."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable


def watch_parent(on_death: Callable[[], None], *, parent: int | None = None) -> threading.Thread:
    """Call `on_death` once, from a thread of its own, when the parent process has died.

    Args:
        on_death: in general `lambda: os._exit(1)` or what begins an orderly end.
        parent: pid that the parent is known to have; by default the present parent's. Give it
            where the parent may already have died: then `on_death` is called at once.

    Returns:
        The daemon thread that waits.
    """
    expected = os.getppid() if parent is None else parent
    watched = -1
    with contextlib.suppress(ProcessLookupError):
        watched = os.pidfd_open(expected)
    # Opened first, compared then: a pid that was used anew in between is told by the comparison.
    alive = watched >= 0 and os.getppid() == expected

    def wait() -> None:
        if alive:
            poll = select.poll()
            poll.register(watched, select.POLLIN)
            poll.poll()
        if watched >= 0:
            os.close(watched)
        on_death()

    thread = threading.Thread(target=wait, name="lifeline", daemon=True)
    thread.start()
    return thread
