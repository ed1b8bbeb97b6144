"""Follow a job that somebody started with `flux submit`.

python examples/attach.py ENDPOINT_ID [JOBID]

Without a job id, a job is submitted here: this must then run in the endpoint's Flux instance.
"""

import os
import subprocess
import sys

from flux_endpoint import Executor

endpoint_id = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FLUX_ENDPOINT_ID")
if not endpoint_id:
    sys.exit("Which endpoint? Give its id as the first argument or in FLUX_ENDPOINT_ID.")
if len(sys.argv) > 2:
    jobid = sys.argv[2]
else:
    command = ["flux", "submit", "sh", "-c", "sleep 1; echo hello from $FLUX_JOB_ID; exit 3"]
    submitted = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if submitted.returncode != 0:  # flux has said why
        sys.exit("Submit a job where the endpoint's Flux instance is, and give its id here.")
    jobid = submitted.stdout.strip()

with Executor(endpoint_id=endpoint_id) as ex:
    future = ex.attach(jobid)
    future.add_event_callback("finish", lambda _, event: print("finish", event.context))
    print("following", jobid)
    print(future.result(timeout=60))
