"""What happens to a task's job while it happens, and how to end it.

python examples/events.py ENDPOINT_ID
"""

import os
import sys
import threading

from flux_endpoint import Executor, ShellFunction
from flux_endpoint.errors import TaskCancelled

endpoint_id = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FLUX_ENDPOINT_ID")
if not endpoint_id:
    sys.exit("Which endpoint? Give its id as the first argument or in FLUX_ENDPOINT_ID.")


def show(_future, event):
    print(f"{event.timestamp:.3f} {event.name} {event.context}")


with Executor(endpoint_id=endpoint_id) as ex:
    ex.resource_specification = {"num_ranks": 1}
    future = ex.submit(ShellFunction("sleep 60"))
    started = threading.Event()
    future.add_event_callback("start", lambda *_: started.set())
    for name in ("submit", "alloc", "start", "exception", "finish"):
        future.add_event_callback(name, show)
    print("job id:", future.jobid(timeout=30))
    started.wait(30)
    future.kill()
    try:
        future.result(timeout=30)
    except TaskCancelled as error:
        print("TaskCancelled:", error)
