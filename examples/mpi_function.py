"""An MPI command, with the resources that it needs.

FLUX_ENDPOINT_ID=… python examples/mpi_function.py
"""

import os

from flux_endpoint import Executor, MPIFunction

with Executor(endpoint_id=os.environ["FLUX_ENDPOINT_ID"]) as executor:
    executor.resource_specification = {
        "num_nodes": 1,  # Number of nodes required for the application instance
        "ranks_per_node": 2,  # Number of ranks / application elements to be launched per node
        "num_ranks": 2,  # Number of ranks in total
    }
    function = MPIFunction("echo {greeting}", snippet_lines=2048)
    print(executor.submit(function, greeting="hello from a rank").result())
