"""A user whose tasks wait for a file, or who finds them again by their group.

Says what it has done, a JSON object a line, and does what it is told, a word a line.
"""

import json
import sys
import time

from globus_compute_sdk import Client, Executor, MPIFunction, ShellFunction
from globus_compute_sdk.errors import TaskExecutionFailed

ORDER = json.loads(sys.argv[1])


def wait_for(path, number):
    import time
    from pathlib import Path

    deadline = time.monotonic() + 90
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.05)
    if number == 3:
        raise ZeroDivisionError("number three")
    return number


def say(**what):
    print(json.dumps(what), flush=True)


def end_of(future):
    try:
        value = future.result(90)
    except TaskExecutionFailed as error:
        return f"{type(error).__name__}: {error.__cause__ or error}"
    return getattr(value, "stdout", value)


client = Client()
# By itself it gives up after eight seconds, and then its user would submit again.
client._compute_web_client.v3.retry_config.max_retries = 100
executor = Executor(
    endpoint_id=ORDER["endpoint_id"],
    task_group_id=ORDER.get("task_group_id"),
    client=client,
    api_burst_limit=8,
    api_burst_window_s=1,
)
futures = []
for line in sys.stdin:
    match line.split():
        case ["submit", first, last]:
            futures += [executor.submit(wait_for, ORDER["gate"], n)
                        for n in range(int(first), int(last))]  # fmt: skip
            say(submitting=len(futures))
        case ["job", *words]:
            executor.resource_specification = {"num_ranks": 2}
            futures.append(executor.submit(MPIFunction(" ".join(words))))
            executor.resource_specification = None
        case ["shell", *words]:
            futures.append(executor.submit(ShellFunction(" ".join(words))))
        case ["ids"]:
            # Set when the service has answered; nothing tells when.
            while not all(future.task_id or future.done() for future in futures):
                time.sleep(0.05)
            group = str(executor.task_group_id)
            say(task_group_id=group, task_ids=[future.task_id for future in futures])
        case ["reload"]:
            futures = list(executor.reload_tasks())
            say(reloaded=len(futures))
        case ["cancel"]:
            say(cancelled=futures[-1].cancel())
        case ["ends"]:
            say(ends={future.task_id: end_of(future) for future in futures})
            futures = []
executor.shutdown()
