"""What the endpoint turns results into.

FLUX_ENDPOINT_ID=… python examples/result_serializers.py
"""

import os

from flux_endpoint import Executor
from flux_endpoint.serialize import DillDataBase64, JSONData


def squares(n):
    return {k: k * k for k in range(n)}


with Executor(os.environ["FLUX_ENDPOINT_ID"], result_serializers=[JSONData()]) as gcx:
    print("JSON:", gcx.submit(squares, 3).result())  # whose keys are texts
    # or set it directly:
    gcx.result_serializers = [DillDataBase64()]
    print("dill:", gcx.submit(squares, 3).result())
