"""A command that is ended when its time is over.

FLUX_ENDPOINT_ID=… python examples/shell_walltime.py
"""

import os

from flux_endpoint import Executor, ShellFunction

with Executor(endpoint_id=os.environ["FLUX_ENDPOINT_ID"]) as executor:
    # Limit execution to 1s
    bf = ShellFunction("sleep 60", walltime=1)
    future = executor.submit(bf)
    print(future.result().returncode)
