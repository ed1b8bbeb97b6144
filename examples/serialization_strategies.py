"""Other ways to turn functions and arguments into text.

FLUX_ENDPOINT_ID=… python examples/serialization_strategies.py
"""

import os

from flux_endpoint import Executor
from flux_endpoint.serialize import (
    CombinedCode,
    ComputeSerializer,
    JSONData,
    PureSourceTextInspect,
)


def area(width, height):
    return width * height


with Executor(os.environ["FLUX_ENDPOINT_ID"]) as gcx:
    gcx.serializer = ComputeSerializer(strategy_code=CombinedCode(), strategy_data=JSONData())
    print("CombinedCode:", gcx.submit(area, 6, height=7).result())
    gcx.serializer = ComputeSerializer(
        strategy_code=PureSourceTextInspect(), strategy_data=JSONData()
    )
    print("PureSourceTextInspect:", gcx.submit(area, 6, height=7).result())
