"""An MPI command, with the resources that it needs.

FLUX_ENDPOINT_ID=… python examples/mpi_function.py
"""

import os
import sys

from flux_endpoint import Executor, MPIFunction

ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
with Executor(endpoint_id=ep_id) as executor:
    executor.resource_specification = {
        "num_nodes": 1,  # Number of nodes required for the application instance
        "ranks_per_node": 2,  # Number of ranks / application elements to be launched per node
        "num_ranks": 2,  # Number of ranks in total
    }
    function = MPIFunction("echo {greeting}", snippet_lines=2048)
    print(executor.submit(function, greeting="hello from a rank").result())
