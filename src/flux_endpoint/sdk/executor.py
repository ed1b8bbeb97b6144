"""`Executor`."""

from flux_endpoint.client import Executor

__all__ = ["Executor"]
