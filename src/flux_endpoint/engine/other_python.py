"""Checks a Python other than the agent's, then has it run a module of this package.

Run as `python -c TEXT OPTION VERSION COMMAND ARGUMENTS...`: OPTION names where this Python was
chosen, COMMAND installs this package, and ARGUMENTS are those of Python itself. Only the standard
library, in the syntax of old Pythons.
"""

import importlib
import os
import sys

_OLDEST = (3, 11)
_NEEDED = ("dill", "psutil", "zmq")


def _problem(version: str, command: str) -> str:
    """Return why this Python can't run functions, or an empty text."""
    if sys.version_info < _OLDEST:
        return "it is Python {}.{}, and {}.{} is the oldest that works".format(
            *sys.version_info[:2], *_OLDEST
        )
    for name in (*_NEEDED, "flux_endpoint"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            return f"it can't import {name} ({error}). In its environment: {command}"
    if module.__version__ != version:
        return (
            f"it has flux-endpoint {module.__version__}, and the endpoint {version}. In its "
            f"environment: {command}"
        )
    return ""


def _main() -> None:
    option, version, command, *arguments = sys.argv[1:]
    if sys.path and not sys.path[0]:
        del sys.path[0]  # the working directory
    problem = _problem(version, command)
    if problem:
        sys.exit(f"flux-endpoint: {option}: {sys.executable} can't run functions: {problem}")
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - this very Python


if __name__ == "__main__":
    _main()
