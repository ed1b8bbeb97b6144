"""Results in the order in which they arrive.

FLUX_ENDPOINT_ID=… python examples/funcx/funcxexecutor_results_as_arrived.py
"""

import concurrent.futures
import os
import sys

from flux_endpoint.funcx import FuncXExecutor


def double(x):
    return f"{x} -> {x * 2}"


def slow_double(x):
    import random
    import time

    time.sleep(x * random.random() / 10)
    return f"{x} -> {x * 2}"


endpoint_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
with FuncXExecutor(endpoint_id=endpoint_id) as fxe:
    futs = [fxe.submit(double, i) for i in range(10)]

    # The futures were appended to the `futs` list in order, so one could
    # wait for each result in turn to get an ordered set:
    print("Results:", [f.result() for f in futs])

    # But often acting on the results *as they arrive* is more desirable
    # as results are NOT guaranteed to arrive in the order they were
    # submitted.
    #
    # NOTA BENE: handling results "as they arrive" must happen before the
    # executor is shutdown.  Since this executor was used in a `with`
    # statement, then to stream results, we must *stay* within the `with`
    # statement.  Otherwise, at the unindent, `.shutdown()` will be
    # implicitly invoked (with default arguments) and the script will not
    # continue until *all* of the futures complete.
    futs = [fxe.submit(slow_double, i) for i in range(10, 20)]
    for f in concurrent.futures.as_completed(futs):
        print("Received:", f.result())
