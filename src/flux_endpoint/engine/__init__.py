"""Turns tasks into work on Flux, and the ends of that work into results.

Names are imported on first use, so that a manager, which needs only a part of this package,
starts faster.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flux_endpoint.engine.config import FluxEngineConfig
    from flux_endpoint.engine.engine import FluxEngine
    from flux_endpoint.engine.local import LocalExecutor

__all__ = ["FluxEngine", "FluxEngineConfig", "LocalExecutor"]

_HOMES = {"FluxEngine": "engine", "FluxEngineConfig": "config", "LocalExecutor": "local"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
