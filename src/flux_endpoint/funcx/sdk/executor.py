"""`FuncXExecutor` and `FuncXFuture`."""

from __future__ import annotations

from typing import Any

from flux_endpoint.client import Client, ComputeFuture, Executor

FuncXFuture = ComputeFuture


class FuncXExecutor(Executor):
    """`Executor`, by its name and with the arguments that it had in funcX.

    Args:
        endpoint_id: where tasks run.
        container_id: there are no containers here: `None`.
        funcx_client: the client to use.
        kwargs: as of `Executor`.

    Raises:
        ValueError: there is a `container_id`; or as `Executor`.
        TypeError: as `Executor`.
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
        """The client that is used."""
        return self.client
