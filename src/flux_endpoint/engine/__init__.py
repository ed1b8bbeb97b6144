"""A task becomes work on Flux, and its end becomes a result."""

from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.engine.engine import FluxEngine
from flux_endpoint.engine.local import LocalExecutor

__all__ = ["FluxEngine", "FluxEngineConfig", "LocalExecutor"]
