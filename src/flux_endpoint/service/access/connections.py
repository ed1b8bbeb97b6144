"""Limits accounts and closes connections over RabbitMQ's management API.

RabbitMQ limits connections and channels only for users in its own database. So each account gets a
user of the same name there, without a password; the service still authenticates it.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from urllib.parse import quote, unquote, urlsplit

from flux_endpoint.amqp.authorization import CACHE_SECONDS
from flux_endpoint.http_library import httpx
from flux_endpoint.logs import event
from flux_endpoint.service.store.accounts import Account, AccountKind

log = logging.getLogger(__name__)

#: Seconds between two scans without a notification: other processes may revoke tokens in the
#: database.
PERIOD = 60.0
#: Seconds after which RabbitMQ has dropped its cached answers.
AGAIN = CACHE_SECONDS + 1.0
_TIMEOUT = 10.0
_CLOSE_TIMEOUT = 3.0
#: Maximum number of connections of an endpoint's account. An agent has one, `doctor` another.
ENDPOINT_CONNECTIONS = 16
#: Maximum number of channels of an account, per connection.
CHANNELS = 8
#: Time limit (s) of a call during a login, while RabbitMQ waits for the answer.
_LIMIT_TIMEOUT = 2.0
_REASON = "the token was revoked, or the endpoint deleted"


class Management:
    """RabbitMQ's management API.

    Args:
        url: `http://host:port`, with user and password if they differ from those in `amqp_url`.
        amqp_url: URL with the service's account. The account in use must have the tag
            `administrator`.
    """

    def __init__(self, url: str, amqp_url: str) -> None:
        parts, service = urlsplit(url), urlsplit(amqp_url)
        account = parts if parts.username else service
        self._url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._client = httpx.Client(
            auth=(unquote(account.username or ""), unquote(account.password or "")),
            timeout=_TIMEOUT,
            trust_env=False,  # proxies are for external hosts
        )

    def users(self, vhost: str) -> set[str]:
        """Return the users that have connections on a virtual host.

        Raises:
            httpx.HTTPError: the API does not answer, or refuses.
        """
        # Without statistics, which may be late or disabled.
        what = "disable_stats=true&columns=user,vhost"
        answer = self._client.get(f"{self._url}/api/connections?{what}")
        answer.raise_for_status()
        return {each["user"] for each in answer.json() if each.get("vhost") == vhost}

    def close_connections(self, user: str) -> None:
        """Close all connections of a user.

        Raises:
            httpx.HTTPError: the API does not answer, or refuses.
        """
        answer = self._client.delete(
            f"{self._url}/api/connections/username/{quote(user, safe='')}",
            headers={"X-Reason": _REASON},
        )
        if answer.status_code != httpx.codes.NOT_FOUND:  # the user has no connection any more
            answer.raise_for_status()

    def limit(self, user: str, vhost: str, connections: int) -> None:
        """Limit the connections and channels of a user, who is created if missing.

        Args:
            user: name of the user.
            vhost: the service's virtual host; it goes into a tag of the user.
            connections: maximum number of connections.

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
        """Return the users with limits for a virtual host.

        Raises:
            httpx.HTTPError: the API does not answer, or refuses.
        """
        answer = self._client.get(f"{self._url}/api/users?columns=name,tags")
        answer.raise_for_status()
        return {each["name"] for each in answer.json() if _tag(vhost) in each.get("tags", ())}

    def forget(self, users: Collection[str]) -> None:
        """Delete users, and so their limits.

        Raises:
            httpx.HTTPError: the API does not answer, or refuses.
        """
        answer = self._client.post(f"{self._url}/api/users/bulk-delete", json={"users": [*users]})
        answer.raise_for_status()

    def close(self) -> None:
        """Close the HTTP connection."""
        self._client.close()


def _tag(vhost: str) -> str:
    """Return the tag for users of one service, since several services may use one RabbitMQ."""
    return f"flux-endpoint-{hashlib.sha256(vhost.encode()).hexdigest()[:16]}"


class AccountLimits:
    """Sets the limits of accounts in RabbitMQ. Safe to use from several threads.

    Args:
        management: the broker's management API.
        vhost: the virtual host that the service uses.
        user_connections: maximum number of connections of a user's account.
    """

    def __init__(self, management: Management, vhost: str, user_connections: int) -> None:
        self._management = management
        self._vhost = vhost
        self._connections = {
            AccountKind.USER: user_connections,
            AccountKind.ENDPOINT: ENDPOINT_CONNECTIONS,
        }
        self._lock = threading.Lock()
        #: Accounts that have limits in RabbitMQ, which stores them.
        self._known: set[str] = set()
        #: How often RabbitMQ has lost some: what it stored before may be lost, too.
        self._losses = 0
        self._failed = False

    def apply(self, account: Account) -> None:
        """Limit an account before its login; a failure is logged and the login goes on."""
        with self._lock:
            if account.name in self._known:
                return
            losses = self._losses
        try:
            self._management.limit(account.name, self._vhost, self._connections[account.kind])
        except httpx.HTTPError as error:
            level = logging.DEBUG if self._failed else logging.WARNING
            reason = str(error) or type(error).__name__
            event(log, level, "connections of an account can't be limited", reason=reason)
            self._failed = True
        else:
            self._failed = False
            with self._lock:
                if losses == self._losses:
                    self._known.add(account.name)

    def forget(self, names: Collection[str] | None = None) -> None:
        """Set limits again at the next login.

        Args:
            names: names of accounts; default: all, since the broker may be another one.
        """
        with self._lock:
            self._losses += 1
            self._known.difference_update([*self._known] if names is None else names)


class ConnectionCloser:
    """Closes the connections of revoked accounts, on its own thread.

    Args:
        management: the broker's management API.
        vhost: the virtual host that the service uses.
        ended: returns those of the given users that are revoked accounts.
        limits: the limits of accounts, which are removed as well.
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
        self._wake.set()  # the first scan covers revocations while no service was running
        self._stopping = False
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="connection-closer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Scan now, and again once RabbitMQ's cached answers have expired. For any thread."""
        self._wake.set()

    def close(self) -> None:
        """Stop the thread and close the management API."""
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
            closed = self._scan()
            # A cached answer of RabbitMQ may have permitted another login.
            again = time.monotonic() + AGAIN if woken or closed else float("inf")

    def _scan(self) -> bool:
        """Close the connections of revoked accounts; return whether there were any."""
        closed = False
        try:
            for user in self._ended(self._management.users(self._vhost)):
                closed = True
                self._management.close_connections(user)
                event(log, logging.INFO, "connections closed", account=user, reason=_REASON)
            if over := self._ended(self._management.limited(self._vhost)):
                self._management.forget(over)
                self._limits.forget(over)
        except Exception as error:  # noqa: BLE001 - the next scan follows soon
            level = logging.DEBUG if self._failed else logging.WARNING
            reason = str(error) or type(error).__name__
            event(log, level, "connections of revoked tokens can't be closed", reason=reason)
            self._failed = True
        else:
            self._failed = False
        return closed
