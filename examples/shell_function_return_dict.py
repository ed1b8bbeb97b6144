"""A command whose result is a dictionary that JSON can hold.

FLUX_ENDPOINT_ID=… python examples/shell_function_return_dict.py
"""

import json
import os
import sys

from flux_endpoint import Executor, ShellFunction

func = ShellFunction("echo '{message}'", return_dict=True)
ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
with Executor(endpoint_id=ep_id) as ex:
    for msg in ("hello", "hola", "bonjour"):
        fut = ex.submit(func, message=msg)
        res = fut.result()
        assert isinstance(res, dict)
        assert msg in res["stdout"]
        print(json.dumps(res))
