"""The command line, `flux-endpoint …`."""

from flux_endpoint.cli.main import main

__all__ = ["main"]
