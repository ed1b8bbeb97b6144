"""A value that shows that it was unpickled."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class Trap:
    """Makes a directory when it is unpickled.

    Args:
        trace: path of the directory.
    """

    def __init__(self, trace: Path | str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.trace),)
