"""`type: FluxEngine` for the official Globus Compute endpoint: see docs/globus-compute-plugin.md.

Importing this package is cheap; the engine is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flux_endpoint.integrations.globus_compute.engine import FluxEngine

__all__ = ["FluxEngine"]


def __getattr__(name: str) -> Any:
    if name != "FluxEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flux_endpoint.integrations.globus_compute.engine import FluxEngine  # noqa: PLC0415 - lazy

    return FluxEngine
