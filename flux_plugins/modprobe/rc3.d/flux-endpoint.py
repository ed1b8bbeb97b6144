"""Drains the endpoints that rc1 started, should the instance end without its cleanup stage."""

import os

from flux.importer import import_path
from flux.modprobe import task

HERE = os.path.dirname(os.path.realpath(__file__))


@task("flux-endpoint-stop", ranks="0", before=["*"], needs_config=["flux-endpoint.start"])
def stop(context):
    """Stop what still runs."""
    agents = import_path(os.path.join(os.path.dirname(HERE), "flux_endpoint_agents.py"))
    agents.drain(context.attr_get("rundir"))
