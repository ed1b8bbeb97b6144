"""Results over another port of the broker's host than the service tells.

FLUX_ENDPOINT_ID=… python examples/amqp_port.py PORT
"""

import os
import sys

from flux_endpoint import Executor

if len(sys.argv) < 2:
    sys.exit("Which port? Give the broker's other AMQP port as the argument.")
port = int(sys.argv[1])
ep_id = os.environ.get("FLUX_ENDPOINT_ID") or sys.exit(
    "Which endpoint? Put its id into FLUX_ENDPOINT_ID."
)
with Executor(ep_id, amqp_port=port) as gce:
    print(f"port {gce.amqp_port}:", gce.submit(pow, 2, 10).result())
