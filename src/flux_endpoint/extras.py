"""The optional dependencies ("extras") of this package, and how to install them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shlex
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from flux_endpoint.errors import ConfigurationError

#: Modules of each extra in `pyproject.toml`, for checking whether it is installed.
MODULES = {
    "flux": ("cffi", "ply"),
    "service": ("alembic", "fastapi", "sqlalchemy", "uvicorn"),
    "postgresql": ("psycopg",),
    "mpi": ("mpi4py",),
    "multi-user": ("jinja2", "jsonschema"),
}


def missing(extra: str) -> list[str]:
    """Return the modules of `extra` that are not installed."""
    return [name for name in MODULES[extra] if importlib.util.find_spec(name) is None]


def require(extra: str, what: str) -> None:
    """Raise an error unless `extra` is installed.

    Args:
        extra: the extra's name.
        what: the feature that needs it, for the message.

    Raises:
        ConfigurationError: it is not installed; the text says how to install it.
    """
    names = missing(extra)
    if names:
        listed = ", ".join(repr(name) for name in names)
        packages = "package" if len(names) == 1 else "packages"
        raise ConfigurationError(
            f"{what} needs the Python {packages} {listed}: {install_command(extra)}"
        )


def install_command(extra: str) -> str:
    """Return the command that installs an extra from a checkout, since there is no release yet.

    Args:
        extra: the extra's name.

    Returns:
        The command for the checkout that this package was installed from; if that does not exist
        any more, a general one.
    """
    source = _checkout()
    if source is None:
        return f"pip install '.[{extra}]' in a checkout of Flux Endpoint"
    path, editable = source
    target = shlex.quote(f"{path}[{extra}]")
    return f"pip install {'--editable ' if editable else ''}{target}"


def _checkout() -> tuple[Path, bool] | None:
    """Return the directory from which pip installed this package, and whether it is editable."""
    with suppress(
        importlib.metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError
    ):
        written = importlib.metadata.distribution("flux-endpoint").read_text("direct_url.json")
        origin = json.loads(written or "{}")
        url = urlsplit(origin["url"])
        path = Path(unquote(url.path))
        if url.scheme == "file" and (path / "pyproject.toml").is_file():
            return path, bool(origin["dir_info"].get("editable"))
    return None
