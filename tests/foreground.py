"""Programs that run in the foreground of a test, and Ctrl-C for them."""

from __future__ import annotations

import signal
import subprocess
from types import TracebackType
from typing import Any

from flux_endpoint.processes import is_readable

#: Time (s) without a reaction after which Ctrl-C is pressed again, as a person would do.
_AGAIN_AFTER = 20.0
_PRESSES = 3


class Process(subprocess.Popen[Any]):
    """A `Popen` whose `with` block waits for its end, or kills it after an exception."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, traceback)


def interrupt(process: subprocess.Popen[Any]) -> None:
    """Press Ctrl-C until the process reacts: with output, or with its end.

    A signal may arrive just before CPython's main thread begins to wait. CPython then handles it
    only after another signal.
    """
    stream = process.stdout or process.stderr
    assert stream is not None
    for _ in range(_PRESSES):
        process.send_signal(signal.SIGINT)
        if is_readable(stream, _AGAIN_AFTER):
            return
