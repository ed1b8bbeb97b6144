"""httpx comes without the libraries of its command line."""

import subprocess
import sys

CODE = """
import sys
import flux_endpoint.rest
loaded = sorted({"httpx", "rich", "pygments", "httpx._main"} & sys.modules.keys())
import httpx
from importlib.util import find_spec
print(loaded, callable(httpx.get), find_spec("httpx._main") is not None)
"""


def test_the_http_client_does_not_load_httpx_command_line():
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert done.stdout == "['httpx'] True True\n"
