"""Where state lives on disk: `$FLUX_ENDPOINT_HOME`, by default `~/.flux_endpoint`."""

from __future__ import annotations

import os
from pathlib import Path

from flux_endpoint.errors import ConfigurationError

HOME_VARIABLE = "FLUX_ENDPOINT_HOME"
#: In an endpoint's directory: what its Python functions print.
OUTPUT_LOG = "output.log"


def home() -> Path:
    """Return the state directory, created with mode 0700 if it was missing.

    Raises:
        ConfigurationError: it is none, and can't be made; names the variable that says where it is.
    """
    configured = os.environ.get(HOME_VARIABLE)
    shown, source = configured or "~/.flux_endpoint", HOME_VARIABLE
    if not configured:
        source = f"the default, since {HOME_VARIABLE} is not set"
    try:
        path = Path(shown).expanduser().absolute()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        if isinstance(error, FileExistsError):
            reason = "it is no directory"
        raise ConfigurationError(
            f"can't use {shown} ({source}) as the state directory: {reason}. Set {HOME_VARIABLE} "
            "to a directory of yours"
        ) from error
    return path


def credentials_file() -> Path:
    """Return the path of the file that says where the service is and who we are."""
    return home() / "credentials.json"


def endpoint_dir(name: str) -> Path:
    """Return the directory of the endpoint called `name` (which may not exist)."""
    return home() / "endpoints" / name


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path` with mode 0600, atomically: readers see the old or the new file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
