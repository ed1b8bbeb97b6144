"""Drains the endpoints that rc1 started, should the instance end without its cleanup stage."""

import json
import os
import subprocess
import sys

from flux.modprobe import task


@task("flux-endpoint-stop", ranks="0", before=["*"], needs_config=["flux-endpoint.start"])
def stop(context):
    """Stop what still runs; what does not is no error."""
    try:
        with open(os.path.join(context.attr_get("rundir"), "flux-endpoint")) as file:
            commands = [json.loads(line) for line in file]
    except (OSError, ValueError):
        return  # rc1 started none
    for command in commands:
        try:
            subprocess.call(command, stdout=subprocess.DEVNULL)
        except OSError as error:
            print("flux-endpoint: can't stop %s: %s" % (command[2], error), file=sys.stderr)
