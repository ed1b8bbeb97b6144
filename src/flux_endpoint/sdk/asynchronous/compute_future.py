"""Alias of `flux_endpoint.client.ComputeFuture`."""

from flux_endpoint.client import ComputeFuture

__all__ = ["ComputeFuture"]
