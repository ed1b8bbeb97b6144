"""`Client`."""

from flux_endpoint.client import Client

__all__ = ["Client"]
