"""Several lines, of which some are launched on every rank.

FLUX_ENDPOINT_ID=… python examples/mpi_multi_line.py
"""

import os
import sys

from flux_endpoint import Executor, MPIFunction

function = MPIFunction("""true; # force the default prefix to launch a no-op
$PARSL_MPI_PREFIX echo first
echo between the two
$PARSL_MPI_PREFIX echo second
""")
ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
with Executor(endpoint_id=ep_id) as executor:
    executor.resource_specification = {"num_ranks": 2}
    print(executor.submit(function).result().stdout)
