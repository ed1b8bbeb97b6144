"""Results over another port of the broker's host than the service tells.

FLUX_ENDPOINT_ID=… python examples/amqp_port.py PORT
"""

import os
import sys

from flux_endpoint import Executor

if len(sys.argv) < 2:
    sys.exit("Which port? Give the broker's other AMQP port as the argument.")
port = int(sys.argv[1])
with Executor(os.environ["FLUX_ENDPOINT_ID"], amqp_port=port) as gce:
    print(f"port {gce.amqp_port}:", gce.submit(pow, 2, 10).result())
