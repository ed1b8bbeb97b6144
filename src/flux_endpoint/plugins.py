"""Locates the Flux plugins of this package."""

from __future__ import annotations

from pathlib import Path

from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.extras import install_command

_NAME = "flux_plugins"


def plugin_directory() -> Path:
    """Return the directory of the Flux plugins: in the installed package, or in the checkout.

    Raises:
        FluxEndpointError: the plugins are not installed.
    """
    package = Path(__file__).parent
    for candidate in (package / _NAME, package.parents[1] / _NAME):
        if (candidate / "README.md").is_file():
            return candidate
    raise FluxEndpointError(
        f"the Flux plugins are neither in {package / _NAME} nor in a checkout around it; install "
        f"the package as a whole: {install_command()}"
    )
