"""A command instead of a function: what it printed comes back.

FLUX_ENDPOINT_ID=… python examples/shell_function.py
"""

import os
import sys

from flux_endpoint import Executor, ShellFunction

ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
# The cmd will be formatted with kwargs at invocation time
bf = ShellFunction("echo '{message}'")
with Executor(endpoint_id=ep_id) as ex:
    for msg in ("hello", "hola", "bonjour"):
        future = ex.submit(bf, message=msg)
        shell_result = future.result()  # ShellFunctions return ShellResults
        print(shell_result.stdout)
