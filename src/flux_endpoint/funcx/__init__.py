"""Aliases with the names of funcX, the predecessor of Globus Compute.

Scripts for funcX run if they import `flux_endpoint.funcx` instead of `funcx`:

    from flux_endpoint.funcx import FuncXClient, FuncXExecutor
    from flux_endpoint.funcx.sdk.executor import FuncXFuture

All classes are those of `flux_endpoint.client`, under other names.
"""

from flux_endpoint.funcx.sdk.client import FuncXClient
from flux_endpoint.funcx.sdk.executor import FuncXExecutor

__all__ = ["FuncXClient", "FuncXExecutor"]
