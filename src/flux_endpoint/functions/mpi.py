"""`MPIFunction`: a command line that runs on every rank of a task."""

from __future__ import annotations

from typing import ClassVar

from flux_endpoint.functions.shell import ShellFunction


class MPIFunction(ShellFunction):
    """A `ShellFunction` whose command is started by an MPI launcher.

    The `resource_specification` of the submission determines the number and places of the ranks.
    Without one, the command runs once, on one worker, without a launcher; an Executor warns about
    that.
    """

    command_prefix: ClassVar[str] = "$PARSL_MPI_PREFIX "
