"""The embedded executor: `FluxExecutor`'s interface over processes of this machine."""

from flux_endpoint.engine.local.event_log import EventLogEvent, JobException
from flux_endpoint.engine.local.executor import LocalExecutor
from flux_endpoint.engine.local.future import LocalExecutorFuture

__all__ = [
    "EventLogEvent",
    "JobException",
    "LocalExecutor",
    "LocalExecutorFuture",
]
