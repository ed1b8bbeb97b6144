"""Allocations that an endpoint asks its Flux instance for, to run tasks in: blocks."""

from flux_endpoint.engine.blocks.engine import BlockEngine

__all__ = ["BlockEngine"]
