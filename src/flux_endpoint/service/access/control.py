"""Access control for the broker, over the lifetime of the service."""

import logging
import threading
from typing import Protocol

from flux_endpoint.amqp.url import address_of, parse_url, without_credentials
from flux_endpoint.errors import ConfigurationError
from flux_endpoint.logs import event
from flux_endpoint.service.access.authority import Authority
from flux_endpoint.service.access.connections import AccountLimits, ConnectionCloser, Management
from flux_endpoint.service.access.listener import QuestionListener
from flux_endpoint.service.access.passwords import Passwords
from flux_endpoint.service.access.trial import Trial, TrialOutcome, Verdict
from flux_endpoint.service.access.urls import AccountUrls, BrokerUrls, SharedUrls
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import accounts
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

_REMEDY = (
    "configure RabbitMQ to ask this service at --authorization-url (docs/deployment.md, 'Accounts "
    "at the broker')"
)


class BrokerAccess(Protocol):
    """The accounts that clients and endpoints use at the broker."""

    @property
    def urls(self) -> BrokerUrls:
        """The broker's URLs for clients and endpoints."""

    def start(self) -> None:
        """Start access control.

        Raises:
            ConfigurationError: the service can't listen for authorization requests.
        """

    def check(self) -> None:
        """Check that the broker separates accounts, if it can be reached now.

        Raises:
            ConfigurationError: it does not use this service for authorization.
        """

    def broker_connected(self) -> None:
        """Handle a new connection to the broker, which may be another one. Returns at once."""

    def revoked(self) -> None:
        """Handle the removal of a token, a user or an endpoint. Returns at once."""

    def close(self) -> None:
        """Stop access control."""


def broker_access(settings: ServiceSettings) -> BrokerAccess:
    """Return the access control that the settings select.

    The database's schema must be up to date.
    """
    if settings.shared_broker_accounts:
        return SharedAccess(settings)
    return AccountAccess(settings)


class SharedAccess:
    """All clients share one account, and all endpoints another.

    Args:
        settings: the service's settings.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.urls = SharedUrls(settings.client_amqp_url, settings.endpoint_amqp_url)

    def start(self) -> None:
        """Log a warning about the consequences."""
        event(
            log,
            logging.WARNING,
            "all users share the accounts of --client-amqp-url and --endpoint-amqp-url at the "
            "broker: any user can read, forge and stop the tasks of all others",
        )

    def check(self) -> None:
        """Do nothing: the operator has chosen shared accounts."""

    def broker_connected(self) -> None:
        """Do nothing."""

    def revoked(self) -> None:
        """Do nothing: shared accounts stay valid."""

    def close(self) -> None:
        """Do nothing."""


class AccountAccess:
    """Separate accounts, which the broker authorizes with this service.

    Args:
        settings: the service's settings.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._amqp_url = settings.amqp_url
        self._closed = False
        # Its own connection pool, so that answers don't wait for users' requests.
        self._database = Database(settings.database_url)
        with self._database.read() as connection:
            passwords = Passwords(accounts.account_key(connection))
        vhost: str = parse_url(settings.amqp_url).virtual_host
        self._limits: AccountLimits | None = None
        self._closer: ConnectionCloser | None = None
        if settings.management_url:
            management = Management(settings.management_url, settings.amqp_url)
            self._limits = AccountLimits(management, vhost, settings.max_account_connections)
            self._closer = ConnectionCloser(management, vhost, self._ended, self._limits)
        limit = self._limits.apply if self._limits is not None else lambda _: None
        self._authority = Authority(self._database, passwords, vhost, limit)
        self._listener = QuestionListener(
            settings.authorization_url, self._authority.answer, self.revoked
        )
        self.urls: BrokerUrls = AccountUrls(
            without_credentials(settings.client_amqp_url),
            without_credentials(settings.endpoint_amqp_url),
            passwords,
        )

    def start(self) -> None:
        """Begin to answer the broker, and to close the connections of revoked accounts.

        Raises:
            ConfigurationError: the service can't listen for authorization requests.
        """
        self._listener.start()
        if self._closer is not None:
            self._closer.start()
        else:
            event(
                log,
                logging.WARNING,
                "no --management-url: open connections of revoked tokens and deleted endpoints "
                "stay until they end by themselves, and no account's connections are limited",
            )

    def check(self) -> None:
        """Check with a trial login that the broker uses this service.

        Raises:
            ConfigurationError: it does not.
        """
        outcome = self._try()
        if outcome.verdict is Verdict.DOES_NOT_ASK:
            raise ConfigurationError(self._explanation(outcome))

    def broker_connected(self) -> None:
        """Repeat the check on another thread, and set all limits again."""
        if self._limits is not None:
            self._limits.forget()
        threading.Thread(target=self._try_and_log, name="broker-trial", daemon=True).start()

    def revoked(self) -> None:
        """Close the connections of revoked accounts."""
        if self._closer is not None:
            self._closer.wake()

    def close(self) -> None:
        """Stop the threads and close the database."""
        self._closed = True
        if self._closer is not None:
            self._closer.close()
        self._listener.close()
        self._database.close()

    def _try(self) -> TrialOutcome:
        trial = Trial()
        self._authority.admit(trial)
        try:
            return trial.run(self._amqp_url)
        finally:
            self._authority.dismiss(trial)

    def _try_and_log(self) -> None:
        outcome = self._try()
        if outcome.verdict is Verdict.DOES_NOT_ASK and not self._closed:
            event(log, logging.ERROR, self._explanation(outcome))

    def _explanation(self, outcome: TrialOutcome) -> str:
        reason = outcome.reason
        if self._listener.misdirected:
            reason = "it asks at another path than that of --authorization-url"
        return (
            f"the broker {address_of(self._amqp_url)} does not ask this service for authorization: "
            f"{reason}. To separate users, {_REMEDY}; or let all users share accounts, with "
            "--shared-broker-accounts"
        )

    def _ended(self, users: set[str]) -> set[str]:
        known = {user: accounts.parse_account(user) for user in users}
        with self._database.read() as connection:
            return {
                user
                for user, account in known.items()
                if account is not None and not accounts.is_alive(connection, account)
            }
