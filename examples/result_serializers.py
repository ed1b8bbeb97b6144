"""What the endpoint turns results into.

FLUX_ENDPOINT_ID=… python examples/result_serializers.py
"""

import os
import sys

from flux_endpoint import Executor
from flux_endpoint.serialize import DillDataBase64, JSONData


def squares(n):
    return {k: k * k for k in range(n)}


ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
with Executor(ep_id, result_serializers=[JSONData()]) as gcx:
    print("JSON:", gcx.submit(squares, 3).result())  # whose keys are texts
    # or set it directly:
    gcx.result_serializers = [DillDataBase64()]
    print("dill:", gcx.submit(squares, 3).result())
