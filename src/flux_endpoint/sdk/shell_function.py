"""Aliases of `ShellFunction` and `ShellResult` in `flux_endpoint.functions`."""

from flux_endpoint.functions import ShellFunction, ShellResult

__all__ = ["ShellFunction", "ShellResult"]
