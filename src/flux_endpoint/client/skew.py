"""Warns if an endpoint has other versions of Python or dill than this process."""

from __future__ import annotations

import platform
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import dill

_lock = threading.Lock()
_looked_at: set[tuple[str, str, str]] = set()


class VersionSkewWarning(UserWarning):
    """An endpoint's Python or dill differs from this process's."""


def warn_of_skew(details: Mapping[str, Any] | None) -> None:
    """Warn if an endpoint's versions don't fit those of this process, once for each endpoint.

    Functions are sent as byte code, which depends on the minor version of Python. The format of
    dill depends on its minor version.

    Args:
        details: a result's details, with the versions of the Python and dill that ran its task.
    """
    if not details:
        return
    python, theirs = details.get("python_version"), details.get("dill_version")
    if not isinstance(python, str) or not isinstance(theirs, str):
        return
    seen = (str(details.get("endpoint_id")), python, theirs)
    if seen in _looked_at:
        return
    with _lock:
        if seen in _looked_at:
            return
        _looked_at.add(seen)
    here = platform.python_version()
    if _minor(python) == _minor(here) and _minor(theirs) == _minor(dill.__version__):
        return
    warnings.warn(
        f"Endpoint {seen[0]} runs tasks with Python {python} and dill {theirs}, this is Python "
        f"{here} with dill {dill.__version__}: functions and values may fail to load, or behave "
        f"differently. Submit with Python {_minor(python)}, or send functions as source text, with "
        "ComputeSerializer(strategy_code=AllCodeStrategies(), strategy_data=AllDataStrategies())",
        VersionSkewWarning,
        stacklevel=2,
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
