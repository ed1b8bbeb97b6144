"""Detects the death of the parent process."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable


def watch_parent(on_death: Callable[[], None], *, parent: int | None = None) -> threading.Thread:
    """Call `on_death` once, on its own thread, when the parent process has died.

    Args:
        on_death: usually `lambda: os._exit(1)`, or the start of an orderly end.
        parent: the parent's known pid; by default the present parent's. Pass it if the parent may
            have died already: then `on_death` is called at once.

    Returns:
        The waiting daemon thread.
    """
    expected = os.getppid() if parent is None else parent
    watched = -1
    with contextlib.suppress(ProcessLookupError):
        watched = os.pidfd_open(expected)
    # Open first, then compare: this detects a pid that was reused in between.
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
