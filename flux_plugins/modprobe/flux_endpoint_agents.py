"""The endpoints that belong to a Flux instance: what its rc scripts do with them.

    flux python flux_endpoint_agents.py start RUNDIR TIMEOUT NAME…
    flux python flux_endpoint_agents.py drain RUNDIR

A file in the broker's run directory says which endpoints were started. It is locked while they are
started or drained: a drain waits for a start, and there is no start after a drain.
"""

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import time

import flux
from flux.resource import resource_list

HERE = os.path.dirname(os.path.realpath(__file__))
#: What the file holds when the instance is about to end.
DRAINED = "drained\n"
#: Seconds between two looks at whether the instance knows its resources.
INTERVAL = 0.1


def find_command():
    """Return the command flux-endpoint that belongs to this file, else the one on PATH."""
    beside = os.path.join(HERE, os.pardir, "command", "flux-endpoint")
    return os.path.realpath(beside) if os.path.exists(beside) else "flux-endpoint"


@contextlib.contextmanager
def locked(rundir):
    """Open the file that says what was started, as nobody else's."""
    descriptor = os.open(os.path.join(rundir, "flux-endpoint"), os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def start(rundir, timeout, names):
    """Start endpoints, unless they run elsewhere; return when each is ready, or why it isn't."""
    command = find_command()
    with locked(rundir) as file:
        if DRAINED in file.read():
            return
        for name in names:
            try:
                if agent(command, name) is not None:
                    say("%s runs already, outside of this instance" % name)
                    continue
                subprocess.call([command, "start", name, "--detach", "--timeout", str(timeout)])
                pid = agent(command, name)
            except (OSError, ValueError, LookupError, subprocess.CalledProcessError) as error:
                say("can't start %s: %s" % (name, error))
                continue
            if pid is not None:  # also one that is not ready yet, and goes on trying
                file.write(json.dumps([command, "stop", name, "--pid", str(pid)]) + "\n")


def drain(rundir):
    """Stop what was started; what runs no more is no error."""
    with locked(rundir) as file:
        lines = file.read().splitlines(True)
        file.write(DRAINED)
    for line in lines:
        if line != DRAINED:
            command = json.loads(line)
            try:
                subprocess.call(command, stdout=subprocess.DEVNULL)
            except OSError as error:
                say("can't stop %s: %s" % (command[2], error))


def agent(command, name):
    """Return the process id of an endpoint's agent, None if it isn't running."""
    listed = json.loads(subprocess.check_output([command, "list", "--json"]).decode())
    found = [each for each in listed if each["name"] == name and each["status"] != "stopped"]
    return found[0]["pid"] if found else None


def knows_resources(handle):
    """Return whether the instance can say yet what resources it has."""
    try:
        resource_list(handle).get()
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOSYS):
            raise
        return False
    return True


def wait_for_resources(timeout):
    """Wait until the instance runs and knows its resources; return whether it does."""
    handle = flux.Flux()
    handle.rpc("state-machine.wait").get()
    deadline = time.monotonic() + timeout
    while not knows_resources(handle):
        if time.monotonic() > deadline:
            return False
        time.sleep(INTERVAL)
    return True


def say(what):
    """Say something in the instance's log."""
    sys.stderr.write("flux-endpoint: %s\n" % what)


def main(arguments):
    """Carry out one of the commands that the head of this file shows."""
    if arguments[0] == "drain":
        drain(arguments[1])
        return
    rundir, timeout, names = arguments[1], float(arguments[2]), arguments[3:]
    try:
        if wait_for_resources(timeout):
            start(rundir, timeout, names)
        else:
            say("the instance knew no resources after %gs, nothing started" % timeout)
    except OSError as error:  # the instance has ended meanwhile
        say("nothing started: %s" % error)


if __name__ == "__main__":
    main(sys.argv[1:])
