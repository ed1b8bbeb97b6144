"""Alias of `flux_endpoint.client.Batch`."""

from flux_endpoint.client import Batch

__all__ = ["Batch"]
