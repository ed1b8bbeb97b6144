"""Get the results of a batch that another script submitted: funcx/funcxclient_submit_batch.py.

FLUX_ENDPOINT_ID=… python examples/funcx/funcxexecutor_reload_batch.py TASK_GROUP_ID
"""

import concurrent.futures
import os
import sys

from flux_endpoint.funcx import FuncXExecutor

ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
if len(sys.argv) < 2:
    sys.exit("Which tasks? Give the task group id that funcxclient_submit_batch.py printed.")
tg_id = sys.argv[1]  # saved 'yesterday'
with FuncXExecutor(endpoint_id=ep_id, task_group_id=tg_id) as fxe:
    futures = fxe.reload_tasks()
    for f in concurrent.futures.as_completed(futures):
        print("Received:", f.result())
