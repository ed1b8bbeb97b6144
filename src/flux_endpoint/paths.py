"""Where state lives on disk: `$FLUX_ENDPOINT_HOME`, by default `~/.flux_endpoint`."""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "FLUX_ENDPOINT_HOME"


def home() -> Path:
    """Return the state directory, created with mode 0700 if it was missing."""
    configured = os.environ.get(HOME_VARIABLE)
    path = Path(configured).expanduser() if configured else Path.home() / ".flux_endpoint"
    path = path.absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
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
