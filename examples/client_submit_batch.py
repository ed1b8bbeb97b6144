"""Submit a batch, and let another script wait for it: executor_reload_batch.py.

FLUX_ENDPOINT_ID=… python examples/client_submit_batch.py
"""

import os
import sys

from flux_endpoint import Client


def expensive_task(task_arg):
    import time

    time.sleep(0.1)  # imagine 24 hours
    return f"All done with {task_arg}!"


ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
gcc = Client()

print(f"Task Group ID for later reloading: {gcc.session_task_group_id}")
fn_id = gcc.register_function(expensive_task)
batch = gcc.create_batch()
for task_i in range(10):
    batch.add(fn_id, ep_id, args=(task_i,))
gcc.batch_run(batch)
