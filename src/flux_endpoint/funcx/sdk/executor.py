"""`FuncXExecutor` and `FuncXFuture`."""

from __future__ import annotations

from typing import Any

from flux_endpoint.client import Client, ComputeFuture, Executor

FuncXFuture = ComputeFuture


class FuncXExecutor(Executor):
    """`Executor` under its name in funcX, with the arguments that it had there.

    Args:
        endpoint_id: the endpoint that runs the tasks.
        container_id: must be `None`; there are no containers here.
        funcx_client: client of the service.
        kwargs: other arguments of `Executor`.

    Raises:
        ValueError: `container_id` is not `None`; or see `Executor`.
        TypeError: see `Executor`.
        ConfigurationError: see `Executor`.
    """

    def __init__(
        self,
        endpoint_id: Any = None,
        container_id: Any = None,
        funcx_client: Client | None = None,
        **kwargs: Any,
    ) -> None:
        if container_id is not None:
            raise ValueError(
                "container_id must be None: tasks run in the endpoint's own environment; start "
                "the endpoint inside of the container instead"
            )
        kwargs.setdefault("client", funcx_client)
        super().__init__(endpoint_id, **kwargs)

    @property
    def funcx_client(self) -> Client:
        """The client of the service."""
        return self.client
