"""One function, one result.

python examples/basic.py ENDPOINT_ID
"""

import os
import sys

from flux_endpoint import Executor


def double(x):
    return x * 2


endpoint_id = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FLUX_ENDPOINT_ID")
if not endpoint_id:
    sys.exit("Which endpoint? Give its id as the first argument or in FLUX_ENDPOINT_ID.")

with Executor(endpoint_id=endpoint_id) as ex:
    fut = ex.submit(double, 7)

    print(fut.result())
