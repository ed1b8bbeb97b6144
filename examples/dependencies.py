"""Tasks that take the results of other tasks, which do not come to this program in between.

FLUX_ENDPOINT_ID=… python examples/dependencies.py
"""

import os
import sys

from flux_endpoint import DependencyFailed, Executor, ShellFunction

endpoint_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)


def simulate(seed):
    return [seed * step for step in range(4)]


def mean(runs):
    values = [value for run in runs for value in run]
    return sum(values) / len(values)


def broken():
    raise ValueError("no data")


with Executor(endpoint_id=endpoint_id) as executor:
    runs = [executor.submit(simulate, seed) for seed in range(1, 6)]
    average = executor.submit(mean, runs)  # a future anywhere in the arguments
    report = executor.submit(ShellFunction("echo mean {value}"), value=average)
    clean_up = executor.submit(ShellFunction("echo cleaned up"), after=[report])
    print(report.result().stdout, end="")
    print(clean_up.result().stdout, end="")

    try:
        executor.submit(mean, [executor.submit(broken)]).result()
    except DependencyFailed as error:
        print(str(error).partition("failed: ")[2])
