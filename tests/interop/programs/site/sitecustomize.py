"""A process forks when none of its threads writes the log.

The official process pool forks its workers beside threads that log. One that was just writing held
the file's own lock, which nobody in the worker can release: the worker's first line waits for ever.
"""

import logging
import os

held = []


def wait():
    for reference in list(logging._handlerList):
        handler = reference()
        if handler is not None:
            handler.acquire()
            held.append(handler)


def go_on():
    while held:
        held.pop().release()


os.register_at_fork(before=wait, after_in_parent=go_on, after_in_child=held.clear)
