"""Where state lives on disk: `$FLUX_ENDPOINT_HOME`, by default `~/.flux_endpoint`."""

from __future__ import annotations

import contextlib
import errno
import os
import unicodedata
from pathlib import Path

from flux_endpoint.errors import ConfigurationError

HOME_VARIABLE = "FLUX_ENDPOINT_HOME"
#: In an endpoint's directory: what its Python functions print.
OUTPUT_LOG = "output.log"
#: Bytes that the state directory's path may have: Linux takes 4096, and ours are the longest below.
LONGEST_HOME = 3000


def home() -> Path:
    """Return the state directory, created with mode 0700 if it was missing.

    Raises:
        ConfigurationError: it is none, and can't be made, or not every program could use its path;
            names the variable that says where it is.
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
    """Raise `ValueError` for a path that some program below would not take as it is."""
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
    """Return a path on one line of moderate length, in characters that every terminal takes."""
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return shown if len(shown) <= 200 else f"{shown[:100]}…{shown[-80:]}"


def make_private_directory(path: Path) -> None:
    """Make a directory with mode 0700, whatever the umask; one that exists stays as it is."""
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
    """Drop from this process's umask what would take its user's own rights to new files.

    Programs that are started from here could not read their own files otherwise. What others may
    do stays as the umask says.
    """
    os.umask(os.umask(0o077) & 0o077)


def credentials_file() -> Path:
    """Return the path of the file that says where the service is and who we are."""
    return home() / "credentials.json"


def endpoint_dir(name: str) -> Path:
    """Return the directory of the endpoint called `name` (which may not exist)."""
    return home() / "endpoints" / name


def write_private(path: Path, text: str, *, durable: bool = True) -> None:
    """Write `text` to `path` with mode 0600, atomically: readers see the old or the new file.

    Args:
        path: the file.
        text: its whole content.
        durable: whether it must survive the host's end, and not only that of this process.

    Raises:
        OSError: it can't be written, and stays as it was; names `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(descriptor, 0o600)  # whatever the umask
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        # An error of writing, unlike one of opening, does not say of which file it is.
        raise OSError(error.errno, error.strerror, str(path)) from error
