"""`MPIFunction`, and what goes with it."""

from flux_endpoint.functions import MPIFunction, ShellFunction, ShellResult

__all__ = ["MPIFunction", "ShellFunction", "ShellResult"]
