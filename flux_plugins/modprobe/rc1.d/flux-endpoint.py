"""Starts endpoints with a Flux instance, and has them drained before its jobs are cancelled.

    [flux-endpoint]
    start = ["lab"]           # their names
    start-timeout = "30s"     # how long the instance's start waits until they are ready

What can't be started is said, and does not keep the instance from starting.
"""

import json
import os
import shlex
import subprocess
import sys

from flux.modprobe import task
from flux.util import parse_fsd

HERE = os.path.dirname(os.path.realpath(__file__))


def find_command():
    """Return the command flux-endpoint that belongs to this file, else the one on PATH."""
    beside = os.path.join(HERE, os.pardir, os.pardir, "command", "flux-endpoint")
    return os.path.realpath(beside) if os.path.exists(beside) else "flux-endpoint"


def agent(command, name):
    """Return the process id of the endpoint's agent, None if it isn't running."""
    listed = json.loads(subprocess.check_output([command, "list", "--json"]).decode())
    found = [each for each in listed if each["name"] == name and each["status"] != "stopped"]
    return found[0]["pid"] if found else None


@task("flux-endpoint-start", ranks="0", after=["*"], needs_config=["flux-endpoint.start"])
def start(context):
    """Start what the configuration names, unless it runs elsewhere."""
    names = context.conf_get("flux-endpoint.start")
    names = [names] if isinstance(names, str) else names
    timeout = str(parse_fsd(str(context.conf_get("flux-endpoint.start-timeout", "30s"))))
    command = find_command()
    for name in names:
        try:
            if agent(command, name) is not None:
                print("flux-endpoint: %s runs already, outside of this instance" % name)
                continue
            subprocess.call([command, "start", name, "--detach", "--timeout", timeout])
            pid = agent(command, name)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            print("flux-endpoint: can't start %s: %s" % (name, error), file=sys.stderr)
            continue
        if pid is not None:
            drain_at_end(context, [command, "stop", name, "--pid", str(pid)])


def drain_at_end(context, command):
    """Have `command` run before the jobs of the instance are cancelled, and again in rc3."""
    words = " ".join(shlex.quote(word) for word in command)
    # Commands run last pushed, first run; Flux's own, which cancel the jobs, were pushed before.
    context.rpc("runat.push", {"name": "cleanup", "commands": [words + " > /dev/null"]}).get()
    with open(os.path.join(context.attr_get("rundir"), "flux-endpoint"), "a") as file:
        file.write(json.dumps(command) + "\n")
