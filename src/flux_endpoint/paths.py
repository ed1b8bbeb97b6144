"""Paths of the state on disk: `$FLUX_ENDPOINT_HOME`, by default `~/.flux_endpoint`."""

from __future__ import annotations

import contextlib
import errno
import os
import unicodedata
from pathlib import Path

from flux_endpoint.errors import ConfigurationError

HOME_VARIABLE = "FLUX_ENDPOINT_HOME"
#: In an endpoint's directory: the output of its Python functions.
OUTPUT_LOG = "output.log"
#: Longest path of the state directory in bytes: Linux allows 4096, and our files are below it.
LONGEST_HOME = 3000


def home() -> Path:
    """Return the state directory, created with mode 0700 if it was missing.

    Raises:
        ConfigurationError: it is not a directory, can't be created, or has a path that some program
            can't use; the text names the variable that sets it.
    """
    configured = os.environ.get(HOME_VARIABLE)
    shown, source = configured or "~/.flux_endpoint", HOME_VARIABLE
    if not configured:
        source = f"the default, since {HOME_VARIABLE} is not set"
    try:
        path = Path(shown).expanduser().absolute()
        _check_usable(path)
        make_private_directory(path)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a user without a home
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        if isinstance(error, FileExistsError):
            reason = "it is no directory"
        raise ConfigurationError(
            f"can't use {_printable(shown)} ({source}) as the state directory: {reason}. Set "
            f"{HOME_VARIABLE} to a directory of yours"
        ) from error
    return path


def _check_usable(path: Path) -> None:
    """Raise `ValueError` for a path that a program below would misinterpret."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("its path is not UTF-8") from None
    if any(unicodedata.category(each) == "Cc" for each in text):
        raise ValueError("its path has a control character, such as a newline")
    if "{{" in text:  # in the names of a job's files
        raise ValueError("its path has '{{', which begins what Flux fills in")
    if len(os.fsencode(text)) > LONGEST_HOME:
        raise ValueError(
            f"its path has {len(os.fsencode(text))} bytes, and {LONGEST_HOME} are the most"
        )


def _printable(text: str) -> str:
    """Return a path as one line of limited length, in characters that every terminal can show."""
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return shown if len(shown) <= 200 else f"{shown[:100]}…{shown[-80:]}"


def make_private_directory(path: Path) -> None:
    """Create a directory with mode 0700, regardless of the umask; an existing one is unchanged."""
    if path.is_dir():
        return
    if not path.parent.exists():
        make_private_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(0o700)
        return
    if not path.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def keep_owners_rights() -> None:
    """Remove from this process's umask the bits that take away the user's own rights.

    Otherwise programs started here could not read their own files. The umask's effect on other
    users stays.
    """
    os.umask(os.umask(0o077) & 0o077)


def credentials_file() -> Path:
    """Return the path of the file with the service's URL and our token."""
    return home() / "credentials.json"


def endpoint_dir(name: str) -> Path:
    """Return the directory of the endpoint `name` (which may not exist)."""
    return home() / "endpoints" / name


def write_private(path: Path, text: str, *, durable: bool = True) -> None:
    """Write `text` to `path` with mode 0600, atomically: readers see the old or the new file.

    Args:
        path: the file.
        text: its whole content.
        durable: whether it must survive a crash of the host, and not only of this process.

    Raises:
        OSError: it can't be written, and is unchanged; the error names `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(descriptor, 0o600)  # regardless of the umask
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        # A write error, unlike an error of opening, does not name the file.
        raise OSError(error.errno, error.strerror, str(path)) from error
