"""The files from which a private RabbitMQ node starts: identity, secrets, configuration.

node.json         node name and ports (kept over restarts as long as they are free)
passwords.json    the service's password, of which the node only gets a salted hash, and the secret
                  in the URL where the node asks who else may do what
definitions.json  the service's account, imported by the node at each start
rabbitmq.conf, enabled_plugins, .erlang.cookie
data/, log/
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flux_endpoint.amqp.authorization import PLUGINS, configuration
from flux_endpoint.errors import ConfigurationError
from flux_endpoint.paths import write_private
from flux_endpoint.stack.ports import LOOPBACK, free_ports, is_free

#: The only account of the node's own. It owns exchanges and queues, and closes connections. About
#: all others the node asks.
SERVICE = "service"
#: Accounts that earlier releases made.
RETIRED = ("endpoint", "client")
#: What is kept in `passwords.json` beside the service's password.
AUTHORIZATION = "authorization"
#: Largest message in bytes: a submission's or a result's 10 MiB, and room for what wraps it.
MAX_MESSAGE_SIZE = 64 * 2**20
#: Milliseconds that a consumer may take to acknowledge: a day.
CONSUMER_TIMEOUT = 24 * 3600 * 1000
#: Further ports that a command may listen on where the first turns out to be taken.
CTL_PORTS = 100
#: The node's directory, which node and `rabbitmqctl` run in, by a name that every part of RabbitMQ
#: can take: some hand paths to a shell as they are (`df`, for the disk alarm), or to a wildcard.
_HERE = "/proc/self/cwd"
#: More schedulers than these only cost memory at the rates of one machine.
MAX_SCHEDULERS = 4


@dataclass(frozen=True)
class NodeIdentity:
    """What other programs need in order to find a node."""

    name: str
    amqp_port: int
    dist_port: int
    epmd_port: int
    authorization_port: int
    management_port: int


_PORTS = tuple(field.name for field in fields(NodeIdentity) if field.name != "name")


def load_identity(
    directory: Path, *, fresh_ports: bool = False, held: Collection[int] = ()
) -> NodeIdentity:
    """Return the node's name and ports: the ones it had, unless others use these ports now.

    Args:
        directory: the node's.
        fresh_ports: take others.
        held: ports that are ours, and stay.
    """
    file = directory / "node.json"
    known: dict[str, Any] = {}
    if file.exists():
        known = _read_object(file)
    name = known.get("name") or f"flux-endpoint-{secrets.token_hex(4)}@localhost"
    ports = [known.get(key) for key in _PORTS]
    if fresh_ports or not all(
        isinstance(port, int) and (port in held or is_free(port)) for port in ports
    ):
        fresh = free_ports(len(_PORTS))
        ports = [had if had in held else new for had, new in zip(ports, fresh, strict=True)]
    identity = NodeIdentity(str(name), *ports)  # type: ignore[arg-type]  # checked just above
    write_private(file, json.dumps(asdict(identity)))
    return identity


def load_secrets(directory: Path) -> dict[str, str]:
    """Return the secrets by name, made on the first call; those of `RETIRED` if there are any."""
    file = directory / "passwords.json"
    known = _read_object(file) if file.exists() else {}
    secret = {name: text for name, text in known.items() if isinstance(text, str)}
    missing = {SERVICE, AUTHORIZATION} - secret.keys()
    if missing:
        secret |= {name: secrets.token_urlsafe(24) for name in missing}
        write_private(file, json.dumps(secret))
    return secret


def forget_retired(directory: Path) -> None:
    """Note that the node has none of the accounts `RETIRED` any more."""
    kept = {name: text for name, text in load_secrets(directory).items() if name not in RETIRED}
    write_private(directory / "passwords.json", json.dumps(kept))


def password_hash(password: str, salt: bytes) -> str:
    """Return RabbitMQ's `rabbit_password_hashing_sha256` of `password`; `salt` is 4 bytes."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def definitions(password: str) -> dict[str, Any]:
    """Return the service's account as RabbitMQ imports it."""
    return {
        "vhosts": [{"name": "/"}],
        "users": [
            {
                "name": SERVICE,
                "password_hash": password_hash(password, secrets.token_bytes(4)),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ["administrator"],  # to close connections
            }
        ],
        "permissions": [
            {"user": SERVICE, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
        ],
    }


def write_configuration(
    directory: Path, identity: NodeIdentity, password: str, authorization_url: str
) -> None:
    """Write all that the node reads at its start.

    Args:
        directory: the node's.
        identity: its name and ports.
        password: the service's.
        authorization_url: where the node asks who may do what.
    """
    write_private(directory / "definitions.json", json.dumps(definitions(password), indent=1))
    settings = {
        "listeners.tcp.1": f"{LOOPBACK}:{identity.amqp_port}",
        "load_definitions": f"{_HERE}/definitions.json",
        "log.file": "rabbit.log",
        "log.file.level": "warning",
        "log.file.rotation.size": 10 * 2**20,
        "log.file.rotation.count": 3,
        "log.console": "false",
        "max_message_size": MAX_MESSAGE_SIZE,
        "consumer_timeout": CONSUMER_TIMEOUT,
        "disk_free_limit.absolute": "50MB",
        "num_acceptors.tcp": 2,
        **configuration(authorization_url),
        "management.tcp.ip": LOOPBACK,
        "management.tcp.port": identity.management_port,
        # Only connections are asked for, and these it knows without statistics.
        "management.disable_stats": "true",
        "management.rates_mode": "none",  # else RabbitMQ counts each message for each exchange
        "management_agent.disable_metrics_collector": "true",
    }
    text = "".join(f"{key} = {value}\n" for key, value in settings.items())
    write_private(directory / "rabbitmq.conf", text)
    write_private(directory / "enabled_plugins", f"[{','.join(PLUGINS)}].\n")
    cookie = directory / ".erlang.cookie"
    if not cookie.exists():
        write_private(cookie, secrets.token_hex(20))


def node_environment(directory: Path, identity: NodeIdentity) -> dict[str, str]:
    """Return the whole environment of node and `rabbitmqctl`; only PATH is inherited."""
    schedulers = min(os.cpu_count() or 1, MAX_SCHEDULERS)
    loopback_only = "-kernel inet_dist_use_interface {127,0,0,1}"
    ctl_port = free_ports(1)[0]
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(directory),  # of the cookie
        "LANG": "C.UTF-8",
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_EPMD_PORT": str(identity.epmd_port),
        "RABBITMQ_NODENAME": identity.name,
        "RABBITMQ_DIST_PORT": str(identity.dist_port),
        "RABBITMQ_CONFIG_FILE": f"{_HERE}/rabbitmq.conf",
        "RABBITMQ_CONF_ENV_FILE": os.devnull,  # none, not the machine's
        "RABBITMQ_ENABLED_PLUGINS_FILE": f"{_HERE}/enabled_plugins",
        "RABBITMQ_MNESIA_BASE": f"{_HERE}/data",
        "RABBITMQ_LOG_BASE": f"{_HERE}/log",
        "RABBITMQ_PID_FILE": f"{_HERE}/rabbit.pid",
        # Bound schedulers of two nodes would share the same cores and leave the others idle.
        "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{loopback_only} +S {schedulers}:{schedulers}",
        "RABBITMQ_CTL_ERL_ARGS": loopback_only,
        # The first of them may be taken by the time that the command has come up.
        "RABBITMQ_CTL_DIST_PORT_MIN": str(ctl_port),
        "RABBITMQ_CTL_DIST_PORT_MAX": str(min(ctl_port + CTL_PORTS, 65535)),
    }


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigurationError(f"{file} is not JSON ({error}); remove it to start anew") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} must hold a JSON object; remove it to start anew")
    return content
