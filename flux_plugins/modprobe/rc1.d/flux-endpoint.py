"""Starts endpoints with a Flux instance, and has them drained before its jobs are cancelled.

    [flux-endpoint]
    start = ["lab"]           # their names
    start-timeout = "30s"     # how long their start is waited for

What can't be started is said, and does not keep the instance from starting.
"""

import os
import shlex

from flux.importer import import_path
from flux.modprobe import task
from flux.subprocess import rexec_bg
from flux.util import parse_fsd

HERE = os.path.dirname(os.path.realpath(__file__))
AGENTS = os.path.join(os.path.dirname(HERE), "flux_endpoint_agents.py")


@task("flux-endpoint-start", ranks="0", after=["*"], needs_config=["flux-endpoint.start"])
def start(context):
    """Start what the configuration names, unless it runs elsewhere."""
    agents = import_path(AGENTS)
    names = context.conf_get("flux-endpoint.start")
    names = [names] if isinstance(names, str) else names
    timeout = parse_fsd(str(context.conf_get("flux-endpoint.start-timeout", "30s")))
    rundir = context.attr_get("rundir")
    # The last to be pushed is the first to run: before Flux's own, which cancel the jobs.
    drain = " ".join(shlex.quote(word) for word in ["flux", "python", AGENTS, "drain", rundir])
    context.rpc("runat.push", {"name": "cleanup", "commands": [drain]}).get()
    if agents.knows_resources(context.handle):
        agents.start(rundir, timeout, names)
    else:  # it finds out from its other brokers, which wait for this one
        later = ["flux", "python", AGENTS, "start", rundir, str(timeout)]
        rexec_bg(context.handle, later + names, label="flux-endpoint-start").get()
