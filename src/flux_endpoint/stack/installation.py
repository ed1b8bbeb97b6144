"""Finds the RabbitMQ installation of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flux_endpoint.errors import ConfigurationError

#: Directories of RabbitMQ's own scripts: Debian and Fedora, Homebrew, a manual prefix.
_USUAL = (
    "/usr/lib/rabbitmq/bin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    "/opt/rabbitmq/sbin",
    "/usr/local/lib/rabbitmq/bin",
)

NOT_INSTALLED = (
    "RabbitMQ isn't installed: apt-get install rabbitmq-server (as root); or unpack it anywhere "
    "and set RABBITMQ_HOME to that directory; or give one that runs elsewhere to "
    "`flux-endpoint service run` with --amqp-url"
)


@dataclass(frozen=True)
class RabbitInstallation:
    """The programs that a private node needs."""

    server: Path
    ctl: Path
    epmd: Path


def find_rabbitmq(environ: Mapping[str, str] = os.environ) -> RabbitInstallation:
    """Return RabbitMQ's programs, searched in `RABBITMQ_HOME`, the usual places and `PATH`.

    Raises:
        ConfigurationError: RabbitMQ or Erlang's `epmd` is missing; the text says what to do.
    """
    for directory in _candidates(environ):
        server = directory / "rabbitmq-server"
        if _is_own_script(server):
            return RabbitInstallation(server, directory / "rabbitmqctl", _find_epmd(environ))
    raise ConfigurationError(NOT_INSTALLED)


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    home = environ.get("RABBITMQ_HOME")
    if home:
        yield from (Path(home) / "sbin", Path(home) / "bin")
    yield from map(Path, _USUAL)
    yield from (Path(entry) for entry in environ.get("PATH", "").split(os.pathsep) if entry)


def _is_own_script(server: Path) -> bool:
    """Return whether a script is RabbitMQ's own, not a wrapper that requires a certain user."""
    resolved = server.resolve()
    return (
        resolved.name == "rabbitmq-server"
        and os.access(resolved, os.X_OK)
        and (resolved.parent / "rabbitmq-env").is_file()
    )


def _find_epmd(environ: Mapping[str, str]) -> Path:
    path = environ.get("PATH")
    found = shutil.which("epmd", path=path)
    if found:
        return Path(found)
    erl = shutil.which("erl", path=path)
    if erl:
        beside = Path(erl).resolve().with_name("epmd")
        if beside.exists():
            return beside
    raise ConfigurationError(
        "Erlang's epmd, which RabbitMQ needs, is not on PATH: apt-get install erlang-base (as root)"
    )
