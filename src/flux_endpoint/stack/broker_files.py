"""The files of a private RabbitMQ node: identity, secrets, configuration.

node.json         node name and ports (kept across restarts as long as they are free)
passwords.json    the service's password, of which the node only gets a salted hash, and the secret
                  in the URL at which the node asks about other accounts
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

#: The node's only own account. It owns exchanges and queues, and closes connections. The node asks
#: about all others.
SERVICE = "service"
#: Accounts of earlier releases.
RETIRED = ("endpoint", "client")
#: Keys of `passwords.json` besides the service's password.
AUTHORIZATION = "authorization"
#: Largest message in bytes: 10 MiB of a submission or a result, and room for its envelope.
MAX_MESSAGE_SIZE = 64 * 2**20
#: Milliseconds that a consumer may take to acknowledge: a day.
CONSUMER_TIMEOUT = 24 * 3600 * 1000
#: Number of alternative ports for a command's listener, in case the first one is taken.
CTL_PORTS = 100
#: Path of the node's directory inside the node and `rabbitmqctl`, safe for all parts of RabbitMQ:
#: some pass paths unquoted to a shell (`df`, for the disk alarm), or to a wildcard.
_HERE = "/proc/self/cwd"
#: Erlang, without spaces: disables statistics, which nobody reads, when the node is up. At its end,
#: the management plugin's handler would ask the process that waits for the handler, and time out
#: after 5 s.
_WITHOUT_STATISTICS = (
    "spawn(fun()->rabbit:await_startup(),"
    "gen_event:delete_handler(rabbit_event,rabbit_mgmt_db_handler,[])end)."
)
#: More schedulers only cost memory at the rates of one machine.
MAX_SCHEDULERS = 4


@dataclass(frozen=True)
class NodeIdentity:
    """The data that other programs need to find a node."""

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
    """Return the node's name and ports: the earlier ones, unless the ports are in use now.

    Args:
        directory: the node's directory.
        fresh_ports: whether to choose new ports.
        held: ports that this process has reserved; these are kept.
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
    """Return the secrets by name, created on the first call; with those of `RETIRED`, if any."""
    file = directory / "passwords.json"
    known = _read_object(file) if file.exists() else {}
    secret = {name: text for name, text in known.items() if isinstance(text, str)}
    missing = {SERVICE, AUTHORIZATION} - secret.keys()
    if missing:
        secret |= {name: secrets.token_urlsafe(24) for name in missing}
        write_private(file, json.dumps(secret))
    return secret


def forget_retired(directory: Path) -> None:
    """Record that the node no longer has the accounts in `RETIRED`."""
    kept = {name: text for name, text in load_secrets(directory).items() if name not in RETIRED}
    write_private(directory / "passwords.json", json.dumps(kept))


def password_hash(password: str, salt: bytes) -> str:
    """Return RabbitMQ's `rabbit_password_hashing_sha256` of `password`; `salt` is 4 bytes."""
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def definitions(password: str) -> dict[str, Any]:
    """Return the service's account in RabbitMQ's import format."""
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
    """Write the node's configuration files.

    Args:
        directory: the node's directory.
        identity: its name and ports.
        password: the service's password.
        authorization_url: the URL at which the node asks for permissions.
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
        # Only connections are requested, which the API knows without statistics.
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
    """Return the complete environment of node and `rabbitmqctl`; only PATH is inherited."""
    schedulers = min(os.cpu_count() or 1, MAX_SCHEDULERS)
    at_start = f"-eval {_WITHOUT_STATISTICS}"
    loopback_only = "-kernel inet_dist_use_interface {127,0,0,1}"
    ctl_port = free_ports(1)[0]
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(directory),  # for the cookie
        "LANG": "C.UTF-8",
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_EPMD_PORT": str(identity.epmd_port),
        "RABBITMQ_NODENAME": identity.name,
        "RABBITMQ_DIST_PORT": str(identity.dist_port),
        "RABBITMQ_CONFIG_FILE": f"{_HERE}/rabbitmq.conf",
        "RABBITMQ_CONF_ENV_FILE": os.devnull,  # not the machine's file
        "RABBITMQ_ENABLED_PLUGINS_FILE": f"{_HERE}/enabled_plugins",
        "RABBITMQ_MNESIA_BASE": f"{_HERE}/data",
        "RABBITMQ_LOG_BASE": f"{_HERE}/log",
        "RABBITMQ_PID_FILE": f"{_HERE}/rabbit.pid",
        # Bound schedulers of two nodes would share some cores and leave others idle.
        "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(
            (loopback_only, f"+S {schedulers}:{schedulers}", at_start)
        ),
        "RABBITMQ_CTL_ERL_ARGS": loopback_only,
        # The first port may be in use by the time the command has started.
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
