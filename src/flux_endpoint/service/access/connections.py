"""Open connections of accounts that have ended, closed by RabbitMQ's management API."""

import logging
import threading
import time
from collections.abc import Callable
from urllib.parse import quote, unquote, urlsplit

import httpx

from flux_endpoint.amqp.authorization import CACHE_SECONDS
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

#: Seconds between two looks if nobody is told that something was revoked: tokens are revoked in the
#: database, by other processes.
PERIOD = 60.0
#: Seconds after which RabbitMQ has forgotten that an account was alive.
AGAIN = CACHE_SECONDS + 1.0
_TIMEOUT = 10.0
_CLOSE_TIMEOUT = 3.0
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

    def close(self) -> None:
        """Close the HTTP connection."""
        self._client.close()


class ConnectionCloser:
    """Closes connections of accounts that are not alive any more, on a thread of its own.

    Args:
        management: the broker's management API.
        vhost: the virtual host to look at.
        ended: of some users, returns those that are accounts and not alive.
    """

    def __init__(
        self, management: Management, vhost: str, ended: Callable[[set[str]], set[str]]
    ) -> None:
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
        except Exception as error:  # noqa: BLE001 - the next look is soon
            level = logging.DEBUG if self._failed else logging.WARNING
            reason = str(error) or type(error).__name__
            event(log, level, "connections of revoked tokens can't be closed", reason=reason)
            self._failed = True
        else:
            self._failed = False
        return closed
