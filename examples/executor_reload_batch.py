"""Get the results of a batch that another script submitted: client_submit_batch.py.

FLUX_ENDPOINT_ID=… python examples/executor_reload_batch.py TASK_GROUP_ID
"""

import concurrent.futures
import os
import sys

from flux_endpoint import Executor

ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
if len(sys.argv) < 2:
    sys.exit("Which tasks? Give the task group id that client_submit_batch.py printed.")
tg_id = sys.argv[1]  # saved 'yesterday'
with Executor(endpoint_id=ep_id, task_group_id=tg_id) as gce:
    futures = gce.reload_tasks()
    for f in concurrent.futures.as_completed(futures):
        print("Received:", f.result())
