"""A command whose result is a dictionary that JSON can hold.

FLUX_ENDPOINT_ID=… python examples/shell_function_return_dict.py
"""

import json
import os

from flux_endpoint import Executor, ShellFunction

func = ShellFunction("echo '{message}'", return_dict=True)
with Executor(endpoint_id=os.environ["FLUX_ENDPOINT_ID"]) as ex:
    for msg in ("hello", "hola", "bonjour"):
        fut = ex.submit(func, message=msg)
        res = fut.result()
        assert isinstance(res, dict)
        assert msg in res["stdout"]
        print(json.dumps(res))
