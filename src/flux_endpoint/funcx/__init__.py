"""The names of funcX, the predecessor of Globus Compute: its scripts run with their import changed.

    from flux_endpoint.funcx import FuncXClient, FuncXExecutor
    from flux_endpoint.funcx.sdk.executor import FuncXFuture

Everything is that of `flux_endpoint.client`, by another name.
"""

from flux_endpoint.funcx.sdk.client import FuncXClient
from flux_endpoint.funcx.sdk.executor import FuncXExecutor

__all__ = ["FuncXClient", "FuncXExecutor"]
