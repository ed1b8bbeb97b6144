"""The service's URL and our token: two environment variables, else `credentials.json`."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.http_library import httpx
from flux_endpoint.logs import event
from flux_endpoint.paths import credentials_file

log = logging.getLogger(__name__)

URL_VARIABLE = "FLUX_ENDPOINT_SERVICE_URL"
TOKEN_VARIABLE = "FLUX_ENDPOINT_TOKEN"  # noqa: S105 - a name, not a secret


#: Key of `credentials.json` for the lock of the stack that runs the service. If nobody holds the
#: lock, the service is not running, and another user's program may have its port.
STACK_KEY = "stack_lock"


@dataclass(frozen=True)
class Credentials:
    """The service's base URL, without a trailing slash, and a bearer token for it.

    Attributes:
        service_url: e.g. `https://flux.example.org` or `http://127.0.0.1:5000/base`.
        token: the value for the `Authorization` header; never shown by `repr`.
        source: where the token came from, for messages.
        stack_lock: a file that the stack of the service locks; `None`: there is no stack.
    """

    service_url: str
    token: str = field(repr=False)
    source: str = "the caller"
    stack_lock: Path | None = None

    def __post_init__(self) -> None:
        url = self.service_url.strip().rstrip("/")
        problem = _problem_of(url)
        if problem is not None:
            raise ConfigurationError(
                f"service URL {self.service_url!r} (from {self.source}) must look like "
                f"https://host[:port] or http://host[:port]: {problem}"
            )
        token = self.token.strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            problem = "is empty" if not token else "holds characters that no token has"
            raise ConfigurationError(
                f"token from {self.source} {problem}: copy it again from where it was shown"
            )
        object.__setattr__(self, "service_url", url)
        object.__setattr__(self, "token", token)

    @property
    def stack_is_down(self) -> bool:
        """Whether the service's stack is not running: then nobody may be sent the token."""
        return self.stack_lock is not None and not _is_held(self.stack_lock)


def _problem_of(url: str) -> str | None:
    """Return what is wrong with the URL of a service, or `None`."""
    if any(each.isspace() or not each.isprintable() for each in url):
        return "it has a space or a character that can't be printed"
    try:
        parts = urlsplit(url)
        port = parts.port  # parsed here, and may raise
    except ValueError as error:
        return str(error)
    problems = (
        (parts.scheme not in {"http", "https"}, "it has no http:// or https://"),
        (not parts.hostname, "it names no host"),
        (port == 0, "a service has no port 0"),
        (bool(parts.query or parts.fragment), "it has a '?' or '#'"),
        (not _can_be_host(url), f"{parts.hostname!r} is no name of a host"),
    )
    return next((text for wrong, text in problems if wrong), None)


def _can_be_host(url: str) -> bool:
    try:
        # As it is sent, and as it is looked up: each check finds errors that the other misses.
        httpx.URL(url).raw_host.decode("ascii").encode("idna")
    except (httpx.InvalidURL, UnicodeError):
        return False
    return True


def load_credentials() -> Credentials:
    """Return the credentials of the environment, or those of `credentials.json`.

    Raises:
        ConfigurationError: there are none, they are incomplete, or the file can't be used.
    """
    url, token = os.environ.get(URL_VARIABLE), os.environ.get(TOKEN_VARIABLE)
    if url and token:
        return Credentials(url, token, source=f"{URL_VARIABLE} and {TOKEN_VARIABLE}")
    if url or token:
        given, missing = (URL_VARIABLE, TOKEN_VARIABLE) if url else (TOKEN_VARIABLE, URL_VARIABLE)
        raise ConfigurationError(
            f"{given} is set but {missing} is not: set both, or neither to use {credentials_file()}"
        )
    return _from_file(credentials_file())


def _from_file(path: Path) -> Credentials:
    try:
        with path.open(encoding="utf-8") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            text = stream.read()
    except FileNotFoundError:
        raise ConfigurationError(
            f"no credentials: set {URL_VARIABLE} and {TOKEN_VARIABLE}, or put "
            f'{{"service_url": "…", "token": "…"}} into {path} '
            "(`flux-endpoint up` writes it for a stack of your own)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"can't read credentials file {path}: {error}") from None
    if mode & 0o077:
        event(
            log,
            logging.WARNING,
            f"other users can reach the token in {path} (mode {mode:04o}): chmod 600 "
            f"{shlex.quote(str(path))}",
        )
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"credentials file {path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"credentials file {path} must hold a JSON object with service_url and token, "
            f"not a {type(content).__name__}"
        )
    _check_stack(path, content)
    values: dict[str, str] = {}
    for key in ("service_url", "token"):
        value = content.get(key)
        if not isinstance(value, str) or not value.strip():
            what = "has no" if key not in content else "needs a non-empty string in"
            raise ConfigurationError(f"credentials file {path} {what} {key!r}")
        values[key] = value
    lock = content.get(STACK_KEY)
    return Credentials(
        values["service_url"],
        values["token"],
        source=str(path),
        stack_lock=path.parent / lock if isinstance(lock, str) else None,
    )


def _check_stack(path: Path, content: dict[str, Any]) -> None:
    """Raise ConfigurationError if the credentials belong to a stack that is not running."""
    lock = content.get(STACK_KEY)
    if not isinstance(lock, str):
        return
    if not _is_held(path.parent / lock):
        raise ConfigurationError(
            f"the stack that {path} is about does not run: start it with `flux-endpoint up`, or "
            f"set {URL_VARIABLE} and {TOKEN_VARIABLE}"
        )
    if not content.get("service_url"):
        raise ConfigurationError(
            f"the stack that {path} is about is just starting, or ending: try again in a moment"
        )


def _is_held(file: Path) -> bool:
    try:
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when the file is closed
    except BlockingIOError:
        return True
    except OSError:  # the stack's directory is gone
        return False
    return False
