"""A Python function on every rank: its result is the list of the ranks' values.

python examples/mpi_python.py ENDPOINT_ID
"""

import os
import sys

from flux_endpoint import Executor


def pi(steps):
    """Each rank adds up its part; all of them know the sum."""
    import os

    from mpi4py import MPI

    world = MPI.COMM_WORLD
    width = 1.0 / steps
    part = sum(4.0 / (1.0 + ((n + 0.5) * width) ** 2) for n in range(world.rank, steps, world.size))
    job = os.environ.get("FLUX_JOB_ID", "no Flux job")
    return world.rank, job, round(world.allreduce(part * width), 9)


endpoint_id = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FLUX_ENDPOINT_ID")
if not endpoint_id:
    sys.exit("Which endpoint? Give its id as the first argument or in FLUX_ENDPOINT_ID.")

with Executor(endpoint_id=endpoint_id) as ex:
    ex.resource_specification = {"num_nodes": 2, "ranks_per_node": 2, "walltime": "5m"}
    for rank, job, value in ex.submit(pi, 100_000).result():
        print(f"rank {rank} of job {job}: {value}")
