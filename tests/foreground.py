"""Programs that a test has running beside it, and Ctrl-C for them."""

from __future__ import annotations

import signal
import subprocess
from types import TracebackType
from typing import Any

from flux_endpoint.processes import is_readable

#: Seconds after which a person would press Ctrl-C once more.
_AGAIN_AFTER = 20.0
_PRESSES = 3


class Process(subprocess.Popen[Any]):
    """A process that a `with` waits for at its end, as `Popen`; if that failed, it is killed."""

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
    """Press Ctrl-C, until something comes of it: output, or its end.

    CPython does not see a signal that comes in the instant in which its main thread goes to wait,
    before the next one.
    """
    stream = process.stdout or process.stderr
    assert stream is not None
    for _ in range(_PRESSES):
        process.send_signal(signal.SIGINT)
        if is_readable(stream, _AGAIN_AFTER):
            return
