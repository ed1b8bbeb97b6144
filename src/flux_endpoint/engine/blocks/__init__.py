"""Blocks: allocations that an endpoint requests from its Flux instance to run tasks in."""

from flux_endpoint.engine.blocks.engine import BlockEngine

__all__ = ["BlockEngine"]
