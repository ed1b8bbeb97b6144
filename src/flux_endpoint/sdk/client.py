"""Alias of `flux_endpoint.client.Client`."""

from flux_endpoint.client import Client

__all__ = ["Client"]
