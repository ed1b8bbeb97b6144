"""One function, one result.

FLUX_ENDPOINT_ID=… python examples/executor_basic_example.py
"""

import os
import sys

from flux_endpoint import Executor


def double(x):
    return x * 2


ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
with Executor(endpoint_id=ep_id) as gce:
    fut = gce.submit(double, 7)

    print(fut.result())
