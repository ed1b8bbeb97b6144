"""Other ways to turn functions and arguments into text.

FLUX_ENDPOINT_ID=… python examples/serialization_strategies.py
"""

import os
import sys

from flux_endpoint import Executor
from flux_endpoint.serialize import (
    CombinedCode,
    ComputeSerializer,
    JSONData,
    PureSourceTextInspect,
)


def area(width, height):
    return width * height


ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
with Executor(ep_id) as gcx:
    gcx.serializer = ComputeSerializer(strategy_code=CombinedCode(), strategy_data=JSONData())
    print("CombinedCode:", gcx.submit(area, 6, height=7).result())
    gcx.serializer = ComputeSerializer(
        strategy_code=PureSourceTextInspect(), strategy_data=JSONData()
    )
    print("PureSourceTextInspect:", gcx.submit(area, 6, height=7).result())
