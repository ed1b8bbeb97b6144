"""A command that is ended when its time is over.

FLUX_ENDPOINT_ID=… python examples/shell_walltime.py
"""

import os
import sys

from flux_endpoint import Executor, ShellFunction

ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
with Executor(endpoint_id=ep_id) as executor:
    # Limit execution to 1s
    bf = ShellFunction("sleep 60", walltime=1)
    future = executor.submit(bf)
    print(future.result().returncode)
