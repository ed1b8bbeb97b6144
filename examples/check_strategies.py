"""Does a strategy work for a function and its arguments? Ask before submitting.

FLUX_ENDPOINT_ID=… python examples/check_strategies.py
"""

import os
import sys

from flux_endpoint import Executor
from flux_endpoint.serialize import ComputeSerializer, DillCodeSource, JSONData


def greet(name, greeting="greetings"):
    """Greet someone."""

    return f"{greeting} {name}"


serializer = ComputeSerializer(strategy_code=DillCodeSource(), strategy_data=JSONData())

serializer.check_strategies(greet, "world", greeting="hello")
ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
with Executor(ep_id, serializer=serializer) as gcx:
    # serializes like the following:
    print(gcx.submit(greet, "world", greeting="hello").result())

# use the return value of check_strategies:
fn, args, kwargs = serializer.check_strategies(greet, "world", greeting="hello")
assert fn(*args, **kwargs) == greet("world", greeting="hello")
