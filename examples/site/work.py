#!/usr/bin/env python3
"""A day's work: many small functions and an MPI job, on an endpoint of this user's.

flux batch -N4 --endpoint=lab examples/site/work.py lab
flux alloc -N4 --endpoint=lab examples/site/work.py lab
"""

import json
import subprocess
import sys

from flux_endpoint import Executor, MPIFunction


def square(n):
    return n * n


def id_of(name):
    """Return the id of the endpoint that is called so on this machine."""
    listed = subprocess.run(["flux-endpoint", "list", "--json"], check=True, stdout=subprocess.PIPE)
    return next(each["endpoint_id"] for each in json.loads(listed.stdout) if each["name"] == name)


def main(name):
    with Executor(endpoint_id=id_of(name)) as ex:
        futures = [ex.submit(square, n) for n in range(100)]
        print(
            f"{name}: 100 functions, the sum of their squares is", sum(f.result() for f in futures)
        )

        ex.resource_specification = {"num_nodes": 2, "ranks_per_node": 2, "walltime": "5m"}
        future = ex.submit(MPIFunction("printenv FLUX_TASK_RANK"))
        ranks = sorted(future.result().stdout.split())
        print(f"{name}: an MPI job, ranks {', '.join(ranks)}")


if __name__ == "__main__":
    main(sys.argv[1])
