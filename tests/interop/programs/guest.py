"""A session of another user than the endpoint's owner."""

import json
import sys

from globus_compute_sdk import Client, Executor

ENDPOINT = json.loads(sys.argv[1])["endpoint_id"]


def double(number):
    return 2 * number


sees = ENDPOINT in {each["uuid"] for each in Client().get_endpoints(role="any")}
try:
    with Executor(ENDPOINT) as executor:
        told = {"value": executor.submit(double, 21).result(60)}
except Exception as error:
    told = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps({"sees": sees, **told}))
