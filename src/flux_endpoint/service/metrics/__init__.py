"""`GET /metrics`: what Prometheus reads of the service."""

from flux_endpoint.service.metrics.counters import ServiceCounters
from flux_endpoint.service.metrics.exposition import Exposition
from flux_endpoint.service.metrics.requests import CountedRequests, NotedRoutes

__all__ = ["CountedRequests", "Exposition", "NotedRoutes", "ServiceCounters"]
