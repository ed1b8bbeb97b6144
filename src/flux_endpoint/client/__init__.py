"""Submit functions to endpoints and get their results back."""

from flux_endpoint.client.batch import Batch
from flux_endpoint.client.bulk import TaskGroup
from flux_endpoint.client.client import Client
from flux_endpoint.client.display import progress
from flux_endpoint.client.executor import Executor
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.submitting import value_of

__all__ = ["Batch", "Client", "ComputeFuture", "Executor", "TaskGroup", "progress", "value_of"]
