"""Flux Endpoint: functions as a service for clusters that run the Flux resource manager.

    from flux_endpoint import Executor

    with Executor(endpoint_id=...) as executor:
        print(executor.submit(pow, 2, 10).result())

Names are imported when they are first used, so that `import flux_endpoint` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flux_endpoint.client import (
        Batch,
        Client,
        ComputeFuture,
        Executor,
        TaskGroup,
        progress,
        value_of,
    )
    from flux_endpoint.errors import (
        DataStoreError,
        DependencyFailed,
        FluxEndpointError,
        PayloadTooLargeError,
        ServiceError,
        ServiceUnreachableError,
        TaskCancelled,
        TaskExecutionFailed,
        TaskPending,
    )
    from flux_endpoint.functions import MPIFunction, ShellFunction, ShellResult
    from flux_endpoint.serialize import ComputeSerializer

    __version__: str

__all__ = [
    "Batch",
    "Client",
    "ComputeFuture",
    "ComputeSerializer",
    "DataStoreError",
    "DependencyFailed",
    "Executor",
    "FluxEndpointError",
    "MPIFunction",
    "PayloadTooLargeError",
    "ServiceError",
    "ServiceUnreachableError",
    "ShellFunction",
    "ShellResult",
    "TaskCancelled",
    "TaskExecutionFailed",
    "TaskGroup",
    "TaskPending",
    "__version__",
    "progress",
    "value_of",
]

_HOMES = {
    "Batch": "client",
    "Client": "client",
    "ComputeFuture": "client",
    "Executor": "client",
    "TaskGroup": "client",
    "progress": "client",
    "value_of": "client",
    "ComputeSerializer": "serialize",
    "MPIFunction": "functions",
    "ShellFunction": "functions",
    "ShellResult": "functions",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - costs more than all the rest

        value: Any = version("flux-endpoint")
    else:
        home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
        value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
