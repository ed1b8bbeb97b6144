"""`flux batch --endpoint=NAME`, `flux alloc --endpoint=NAME`: an endpoint in the allocation."""

import json
import os
import re

from flux.cli.plugin import CLIPlugin

HERE = os.path.dirname(os.path.realpath(__file__))
VARIABLE = "FLUX_MODPROBE_PATH_APPEND"


class EndpointPlugin(CLIPlugin):
    """Runs a Flux Endpoint inside the new allocation.

    --endpoint=NAME starts the endpoint NAME when the new Flux instance is ready, before the batch
    script or command; it runs tasks on the allocation's resources, and is drained before the
    allocation ends. It must have been made with `flux-endpoint configure NAME`.
    """

    def __init__(self, prog):
        super().__init__(prog, prefix="")
        if self.prog in ("batch", "alloc"):
            self.add_option(
                "--endpoint",
                metavar="NAME",
                help="Run the endpoint NAME inside the allocation, and drain it at the end",
            )

    def preinit(self, args):
        """Have rc1 of the new instance start the endpoint."""
        name = getattr(args, "endpoint", None)
        if name is None:
            return
        check(name)
        # In its configuration, not its environment: instances within it do not inherit that.
        args.conf.update(json.dumps({"flux-endpoint": {"start": [name]}}) + "\n")

    def modify_jobspec(self, args, jobspec):
        """Have the new instance find the rc scripts that belong to this file."""
        if getattr(args, "endpoint", None) is None:
            return
        environment = dict(jobspec.environment)
        ours = os.path.realpath(os.path.join(HERE, os.pardir, "modprobe"))
        paths = [path for path in environment.get(VARIABLE, "").split(":") if path]
        if os.path.isdir(ours) and ours not in paths:
            environment[VARIABLE] = ":".join(paths + [ours])
        jobspec.environment = environment


def check(name):
    """Raise ValueError, which says what to do, if there is no endpoint of that name."""
    home = os.environ.get("FLUX_ENDPOINT_HOME") or os.path.expanduser("~/.flux_endpoint")
    known = os.path.join(home, "endpoints")
    if not re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z", name):
        raise ValueError("--endpoint: %r can't be an endpoint's name" % name)
    if not os.path.exists(os.path.join(known, name, "config.yaml")):
        raise ValueError(
            "--endpoint: %s has no endpoint %r; make it with: flux-endpoint configure %s"
            % (known, name, name)
        )
