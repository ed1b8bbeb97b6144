"""A command instead of a function: what it printed comes back.

python examples/shell_function.py ENDPOINT_ID
"""

import os
import sys

from flux_endpoint import Executor, ShellFunction

endpoint_id = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FLUX_ENDPOINT_ID")
if not endpoint_id:
    sys.exit("Which endpoint? Give its id as the first argument or in FLUX_ENDPOINT_ID.")

bf = ShellFunction("echo '{message}'")
with Executor(endpoint_id=endpoint_id) as ex:
    for msg in ("hello", "hola", "bonjour"):
        future = ex.submit(bf, message=msg)
        shell_result = future.result()  # a ShellResult
        print(shell_result.stdout)
