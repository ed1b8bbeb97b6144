"""Alias of `flux_endpoint.client.Executor`."""

from flux_endpoint.client import Executor

__all__ = ["Executor"]
