"""Normalizes this process, whoever started it: a shell, cron, a daemon."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator

from flux_endpoint.paths import keep_owners_rights


def prepare_process() -> None:
    """Make standard streams and umask usable for this process and its children."""
    _open_standard_streams()
    keep_owners_rights()
    for stream in (sys.stdout, sys.stderr):  # a locale may lack the ƒ of job ids
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every stream has it


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Let the garbage collector rest while modules are imported.

    It would look for garbage among them again and again: up to a seventh of an import's time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _open_standard_streams() -> None:
    """Open closed standard streams (`>&-`): else the next file or socket would take their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            os.set_inheritable(number, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115 - stays open
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
