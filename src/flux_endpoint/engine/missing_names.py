"""Advice for the commonest failure: a function needs a name or a module that is not there."""

from __future__ import annotations

import sys
from types import TracebackType

_SENT = (
    "a function is sent without the imports, functions and data around it: put imports and helper "
    "functions inside it, and pass data as arguments"
)


def advice(error: BaseException) -> str:
    """Return advice for a function that raised `error`; empty if there is none.

    Args:
        error: what the function raised, with its traceback.
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{_not_installed(error.name)}: {_INSTALL}"
    if isinstance(error, NameError) and not isinstance(error, UnboundLocalError):
        return _SENT if _was_sent(error.__traceback__) else ""
    return ""


def missing_module(error: BaseException | None) -> str:
    """Return what to do about a task that refers to a module; empty if no module is missing.

    Args:
        error: why the task could not be read.
    """
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return (
                f"it refers to a module by name, and {_not_installed(error.name)}. Functions and "
                "classes of your main program are sent whole, those of modules by name: "
                f"{_INSTALL}. A module of your own can travel along: ComputeSerializer(modules=[…])"
            )
        error = error.__cause__
    return ""


_INSTALL = (
    "install it there, or choose another Python with engine.python or engine.worker_init of the "
    "endpoint"
)


def _not_installed(name: str) -> str:
    return f"{name.partition('.')[0]} is not installed for this Python, {sys.executable}"


def _was_sent(trace: TracebackType | None) -> bool:
    """Return whether the innermost function came with the task: it belongs to no module here."""
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    names = trace.tb_frame.f_globals
    # Functions of a main program find the names of the worker's main program.
    return names.get("__spec__") is None or names.get("__name__") == "__main__"
