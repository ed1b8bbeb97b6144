"""`ShellFunction` and `ShellResult`."""

from flux_endpoint.functions import ShellFunction, ShellResult

__all__ = ["ShellFunction", "ShellResult"]
