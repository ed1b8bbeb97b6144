"""An MPI command across nodes: one Flux job, whose tasks are the ranks.

python examples/mpi_hello.py ENDPOINT_ID
"""

import os
import sys

from flux_endpoint import Executor, MPIFunction

endpoint_id = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FLUX_ENDPOINT_ID")
if not endpoint_id:
    sys.exit("Which endpoint? Give its id as the first argument or in FLUX_ENDPOINT_ID.")

say = 'from mpi4py.MPI import COMM_WORLD as w; print("rank", w.rank, "of", w.size, flush=True)'
hello = MPIFunction("{python} -c '{program}'")
script = MPIFunction(
    """true; # the prefix in front of the whole launches a no-op
$PARSL_MPI_PREFIX hostname
echo between the two
$PARSL_MPI_PREFIX echo done"""
)


def show_where(_future, event):
    scheduled = event.context.get("annotations", {}).get("sched", {})
    print("runs on", scheduled.get("resource_summary", "this machine"))


with Executor(endpoint_id=endpoint_id) as ex:
    ex.resource_specification = {"num_nodes": 2, "ranks_per_node": 2}
    future = ex.submit(hello, python=sys.executable, program=say)
    future.add_event_callback("alloc", show_where)
    print(future.result())
    print(ex.submit(script).result())
