"""Several lines, of which some are launched on every rank.

FLUX_ENDPOINT_ID=… python examples/mpi_multi_line.py
"""

import os

from flux_endpoint import Executor, MPIFunction

function = MPIFunction("""true; # force the default prefix to launch a no-op
$PARSL_MPI_PREFIX echo first
echo between the two
$PARSL_MPI_PREFIX echo second
""")
with Executor(endpoint_id=os.environ["FLUX_ENDPOINT_ID"]) as executor:
    executor.resource_specification = {"num_ranks": 2}
    print(executor.submit(function).result().stdout)
