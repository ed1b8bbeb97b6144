"""`Batch`."""

from flux_endpoint.client import Batch

__all__ = ["Batch"]
