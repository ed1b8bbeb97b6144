"""What the service has RabbitMQ do by its management API: limit accounts, close connections.

RabbitMQ limits connections and channels of users that it has itself. So each account gets a user of
its name there, without a password: who it is, RabbitMQ goes on asking the service.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from urllib.parse import quote, unquote, urlsplit

import httpx

from flux_endpoint.amqp.authorization import CACHE_SECONDS
from flux_endpoint.logs import event
from flux_endpoint.service.store.accounts import Account, AccountKind

log = logging.getLogger(__name__)

#: Seconds between two looks if nobody is told that something was revoked: tokens are revoked in the
#: database, by other processes.
PERIOD = 60.0
#: Seconds after which RabbitMQ has forgotten that an account was alive.
AGAIN = CACHE_SECONDS + 1.0
_TIMEOUT = 10.0
_CLOSE_TIMEOUT = 3.0
#: Connections that an account of an endpoint may have open: an agent has one, `doctor` another.
ENDPOINT_CONNECTIONS = 16
#: Channels of an account, for each of its connections.
CHANNELS = 8
#: Seconds that one call may take while RabbitMQ waits for an answer.
_LIMIT_TIMEOUT = 2.0
_REASON = "the token was revoked, or the endpoint deleted"


class Management:
    """RabbitMQ's management API.

    Args:
        url: `http://host:port`, with user and password if they are others than the service's.
        amqp_url: the service's account, which must have the tag `administrator`.
    """

    def __init__(self, url: str, amqp_url: str) -> None:
        parts, service = urlsplit(url), urlsplit(amqp_url)
        account = parts if parts.username else service
        self._url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._client = httpx.Client(
            auth=(unquote(account.username or ""), unquote(account.password or "")),
            timeout=_TIMEOUT,
            trust_env=False,  # a proxy is for the world outside
        )

    def users(self, vhost: str) -> set[str]:
        """Return whose connections there are on a virtual host.

        Raises:
            httpx.HTTPError: the API does not answer, or refuses.
        """
        # Without statistics, which come late, if at all.
        what = "disable_stats=true&columns=user,vhost"
        answer = self._client.get(f"{self._url}/api/connections?{what}")
        answer.raise_for_status()
        return {each["user"] for each in answer.json() if each.get("vhost") == vhost}

    def close_connections(self, user: str) -> None:
        """Have all connections of a user closed.

        Raises:
            httpx.HTTPError: the API does not answer, or refuses.
        """
        answer = self._client.delete(
            f"{self._url}/api/connections/username/{quote(user, safe='')}",
            headers={"X-Reason": _REASON},
        )
        if answer.status_code != httpx.codes.NOT_FOUND:  # it has gone by itself
            answer.raise_for_status()

    def limit(self, user: str, vhost: str, connections: int) -> None:
        """Let a user that RabbitMQ asks about have so many connections.

        Raises:
            httpx.HTTPError: the API does not answer, or refuses.
        """
        limits = {"max-connections": connections, "max-channels": CHANNELS * connections}
        answer = self._client.put(
            f"{self._url}/api/users/{quote(user, safe='')}",
            json={"password_hash": "", "tags": _tag(vhost), "limits": limits},
            timeout=_LIMIT_TIMEOUT,
        )
        answer.raise_for_status()

    def limited(self, vhost: str) -> set[str]:
        """Return the users that have been limited for a virtual host.

        Raises:
            httpx.HTTPError: the API does not answer, or refuses.
        """
        answer = self._client.get(f"{self._url}/api/users?columns=name,tags")
        answer.raise_for_status()
        return {each["name"] for each in answer.json() if _tag(vhost) in each.get("tags", ())}

    def forget(self, users: Collection[str]) -> None:
        """Have RabbitMQ forget the limits of users.

        Raises:
            httpx.HTTPError: the API does not answer, or refuses.
        """
        answer = self._client.post(f"{self._url}/api/users/bulk-delete", json={"users": [*users]})
        answer.raise_for_status()

    def close(self) -> None:
        """Close the HTTP connection."""
        self._client.close()


def _tag(vhost: str) -> str:
    """Return what marks the users that belong to a service: several may use one RabbitMQ."""
    return f"flux-endpoint-{hashlib.sha256(vhost.encode()).hexdigest()[:16]}"


class AccountLimits:
    """Has RabbitMQ limit what accounts open. Safe to use from several threads.

    Args:
        management: the broker's management API.
        vhost: the virtual host that the service uses.
        user_connections: most connections of a user's account.
    """

    def __init__(self, management: Management, vhost: str, user_connections: int) -> None:
        self._management = management
        self._vhost = vhost
        self._connections = {
            AccountKind.USER: user_connections,
            AccountKind.ENDPOINT: ENDPOINT_CONNECTIONS,
        }
        #: Accounts that RabbitMQ has limits for; it keeps them.
        self._known: set[str] = set()
        self._failed = False

    def apply(self, account: Account) -> None:
        """Limit an account, before RabbitMQ lets it in; one that can't be limited comes in."""
        if account.name in self._known:
            return
        try:
            self._management.limit(account.name, self._vhost, self._connections[account.kind])
        except httpx.HTTPError as error:
            level = logging.DEBUG if self._failed else logging.WARNING
            reason = str(error) or type(error).__name__
            event(log, level, "connections of an account can't be limited", reason=reason)
            self._failed = True
        else:
            self._failed = False
            self._known.add(account.name)

    def forget(self, names: Collection[str] | None = None) -> None:
        """Apply limits anew; by default to all accounts: the broker may be another one."""
        self._known.difference_update([*self._known] if names is None else names)


class ConnectionCloser:
    """Closes connections of accounts that are not alive any more, on a thread of its own.

    Args:
        management: the broker's management API.
        vhost: the virtual host to look at.
        ended: of some users, returns those that are accounts and not alive.
        limits: the limits of accounts, which go with these.
    """

    def __init__(
        self,
        management: Management,
        vhost: str,
        ended: Callable[[set[str]], set[str]],
        limits: AccountLimits,
    ) -> None:
        self._limits = limits
        self._management = management
        self._vhost = vhost
        self._ended = ended
        self._wake = threading.Event()
        self._wake.set()  # what was revoked while no service ran
        self._stopping = False
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="connection-closer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Look now, and once more when RabbitMQ has forgotten its earlier answers. Any thread."""
        self._wake.set()

    def close(self) -> None:
        """End."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_TIMEOUT)
        self._management.close()

    def _run(self) -> None:
        again = float("inf")
        while True:
            woken = self._wake.wait(min(PERIOD, max(0.0, again - time.monotonic())))
            self._wake.clear()
            if self._stopping:
                return
            closed = self._look()
            # An answer that RabbitMQ has kept may have let one in again.
            again = time.monotonic() + AGAIN if woken or closed else float("inf")

    def _look(self) -> bool:
        """Close what is to be closed; return whether there was anything."""
        closed = False
        try:
            for user in self._ended(self._management.users(self._vhost)):
                closed = True
                self._management.close_connections(user)
                event(log, logging.INFO, "connections closed", account=user, reason=_REASON)
            if over := self._ended(self._management.limited(self._vhost)):
                self._management.forget(over)
                self._limits.forget(over)
        except Exception as error:  # noqa: BLE001 - the next look is soon
            level = logging.DEBUG if self._failed else logging.WARNING
            reason = str(error) or type(error).__name__
            event(log, level, "connections of revoked tokens can't be closed", reason=reason)
            self._failed = True
        else:
            self._failed = False
        return closed
