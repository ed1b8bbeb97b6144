"""Aliases of `MPIFunction`, `ShellFunction` and `ShellResult` in `flux_endpoint.functions`."""

from flux_endpoint.functions import MPIFunction, ShellFunction, ShellResult

__all__ = ["MPIFunction", "ShellFunction", "ShellResult"]
