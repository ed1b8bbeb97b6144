#!/usr/bin/env python3
"""Functions that never end and MPI jobs share an allocation: how busy is it, second by second?

flux alloc -N4 --endpoint=lab examples/site/sharing.py lab 30

Each line is a second: cores with functions (=) and with ranks of jobs (#). Functions and ranks only
hold their cores, so that it can be tried on a laptop.
"""

import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, wait

from work import id_of

from flux_endpoint import Executor, MPIFunction

FUNCTION_SECONDS, JOB_SECONDS = 0.5, 2
RANK = MPIFunction(f"sh -c 'date +%s.%N; sleep {JOB_SECONDS}; date +%s.%N'")


def hold_a_core(seconds):
    import time

    began = time.time()
    time.sleep(seconds)
    return began, time.time()


def functions(endpoint_id, cores, end):
    """Have twice as many functions as cores waiting or running, until `end`."""
    spans, futures = [], set()
    with Executor(endpoint_id=endpoint_id) as ex:
        while time.time() < end or futures:
            while time.time() < end and len(futures) < 2 * cores:
                futures.add(ex.submit(hold_a_core, FUNCTION_SECONDS))
            done, futures = wait(futures, return_when=FIRST_COMPLETED)
            spans += [future.result() for future in done]
    return spans


def jobs(endpoint_id, nodes, cores, end):
    """Run jobs on all nodes, on half of them and on one, each soon after the last, until `end`."""
    spans, count = [], 0
    with Executor(endpoint_id=endpoint_id) as ex:
        while time.time() < end:
            size = (nodes, max(1, nodes // 2), 1)[count % 3]
            ex.resource_specification = {"num_nodes": size, "ranks_per_node": cores // nodes}
            times = sorted(float(line) for line in ex.submit(RANK).result().stdout.split())
            ranks = len(times) // 2
            spans += zip(times[:ranks], times[ranks:], strict=True)
            count += 1
            time.sleep(1)
    return spans, count


def held(spans, second):
    """Return how many cores were held in a second, on average."""
    return sum(max(0.0, min(b, second + 1) - max(a, second)) for a, b in spans)


def main(name, seconds):
    command = ["flux", "resource", "list", "-n", "-s", "all", "-o", "{nnodes} {ncores}"]
    nodes, cores = map(int, subprocess.check_output(command, text=True).split())
    endpoint_id = id_of(name)
    began = time.time()
    end = began + seconds
    of_functions = []
    streaming = threading.Thread(
        target=lambda: of_functions.extend(functions(endpoint_id, cores, end))
    )
    streaming.start()
    of_jobs, count = jobs(endpoint_id, nodes, cores, end)
    streaming.join()

    first = min(a for a, _ in of_functions + of_jobs)
    total = 0.0
    for second in range(max(1, int(end - first))):
        shares = [held(spans, first + second) for spans in (of_functions, of_jobs)]
        total += sum(shares)
        width = 60 / cores
        drawn = "".join(
            mark * round(share * width) for mark, share in zip("=#", shares, strict=True)
        )
        print(f"{second:4}s |{drawn:60}| {sum(shares):.1f} of {cores} cores")
    busy = total / cores / max(1, int(end - first))
    print(f"{name}: {len(of_functions)} functions, {count} jobs, {busy:.0%} of the cores held")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 30.0)
