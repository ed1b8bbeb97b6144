"""`MPIFunction`: a command line that runs on every rank of a task."""

from __future__ import annotations

from typing import ClassVar

from flux_endpoint.functions.shell import ShellFunction


class MPIFunction(ShellFunction):
    """A `ShellFunction` whose command an MPI launcher starts.

    How many ranks there are, and where, is up to the `resource_specification` of the submission.
    Without one, the command runs once, on one worker, and no launcher starts it; an Executor warns
    of that.
    """

    command_prefix: ClassVar[str] = "$PARSL_MPI_PREFIX "
