"""The optional dependencies ("extras") of this package, and how to install them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from flux_endpoint.errors import ConfigurationError

_NAME = "flux-endpoint"

#: Modules of each extra in `pyproject.toml`, for checking whether it is installed.
MODULES = {
    "flux": ("cffi", "ply"),
    "flux-python": ("cffi", "flux", "ply"),
    "service": ("alembic", "fastapi", "sqlalchemy", "uvicorn"),
    "postgresql": ("psycopg",),
    "mpi": ("mpi4py",),
    "multi-user": ("jinja2", "jsonschema"),
    "proxystore": ("proxystore",),
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


def install_command(extra: str = "") -> str:
    """Return the command that installs this package, with an extra, as it was installed here.

    Args:
        extra: the extra's name; empty: none.

    Returns:
        The command for the checkout, archive or repository that this package was installed from.
        The package is named alone only if pip installed a release of it by name, from whichever
        index it is configured with. If the source is unknown or gone, a general command.
    """
    with suppress(importlib.metadata.PackageNotFoundError, OSError, ValueError, TypeError):
        installed = importlib.metadata.distribution(_NAME)
        written = installed.read_text("direct_url.json")
        extras = f"[{extra}]" if extra else ""
        if written is None:
            target = _by_name(installed, extras)
        else:
            target = _from_url(json.loads(written), extras)
        if target is not None:
            return f"pip install {target}"
    what = f"'.[{extra}]'" if extra else "."
    return f"pip install {what} in a checkout of Flux Endpoint"


def _by_name(installed: importlib.metadata.Distribution, extras: str) -> str | None:
    """Return the name of the release that pip or uv installed by its name; `None`: neither did."""
    version = installed.version
    is_release = re.fullmatch(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?", version)
    installer = (installed.read_text("INSTALLER") or "").strip()
    if not is_release or installer not in ("pip", "uv"):
        return None
    return shlex.quote(f"{_NAME}{extras}=={version}")


def _from_url(origin: Any, extras: str) -> str | None:
    """Return what pip is to install from where this package came from; `None`: that is gone.

    Args:
        origin: content of its `direct_url.json`, the Direct URL Data Structure of PyPA.
        extras: `[NAME]`, or empty.
    """
    if not isinstance(origin, dict):
        return None
    url = str(origin.get("url", ""))
    vcs = origin.get("vcs_info")
    if isinstance(vcs, dict):
        return shlex.quote(f"{_NAME}{extras} @ {vcs.get('vcs')}+{url}@{vcs.get('commit_id')}")
    parts = urlsplit(url)
    if parts.scheme != "file":
        return shlex.quote(f"{_NAME}{extras} @ {url}")
    path = Path(unquote(parts.path))
    target = shlex.quote(f"{path}{extras}")
    directory = origin.get("dir_info")
    if isinstance(directory, dict) and (path / "pyproject.toml").is_file():
        return f"--editable {target}" if directory.get("editable") else target
    return target if path.is_file() else None
