"""One function, one result.

FLUX_ENDPOINT_ID=… python examples/funcx/funcxexecutor_basic_example.py
"""

import os
import sys

from flux_endpoint.funcx import FuncXExecutor


def double(x):
    return x * 2


ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
with FuncXExecutor(endpoint_id=ep_id) as fxe:
    fut = fxe.submit(double, 7)

    print(fut.result())
