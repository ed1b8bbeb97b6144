"""The broker's URLs for clients and endpoints."""

from typing import Protocol

from flux_endpoint.amqp.url import with_credentials
from flux_endpoint.service.access.passwords import Passwords
from flux_endpoint.service.store.accounts import Account, AccountKind
from flux_endpoint.service.store.users import User


class BrokerUrls(Protocol):
    """The broker's URLs, with accounts, for clients and endpoints."""

    def of_user(self, user: User) -> str:
        """Return the URL for a user's clients."""

    def of_endpoint(self, endpoint_id: str, token_id: str) -> str:
        """Return the URL for an endpoint.

        Args:
            endpoint_id: the endpoint.
            token_id: id of the token with which it was registered.
        """


class SharedUrls:
    """One account for all clients, one for all endpoints.

    Args:
        client: the URL for clients.
        endpoint: the URL for endpoints.
    """

    def __init__(self, client: str, endpoint: str) -> None:
        self._client = client
        self._endpoint = endpoint

    def of_user(self, user: User) -> str:
        """Return the URL for all clients."""
        del user
        return self._client

    def of_endpoint(self, endpoint_id: str, token_id: str) -> str:
        """Return the URL for all endpoints."""
        del endpoint_id, token_id
        return self._endpoint


class AccountUrls:
    """An account for each token, and one for each endpoint.

    Args:
        client: the URL for clients, without an account.
        endpoint: the URL for endpoints, without an account.
        passwords: the passwords of all accounts.
    """

    def __init__(self, client: str, endpoint: str, passwords: Passwords) -> None:
        self._client = client
        self._endpoint = endpoint
        self._passwords = passwords

    def of_user(self, user: User) -> str:
        """Return the URL with the account of a user's token."""
        return self._with(self._client, Account(AccountKind.USER, user.id, user.token_id))

    def of_endpoint(self, endpoint_id: str, token_id: str) -> str:
        """Return the URL with the account of an endpoint.

        Args:
            endpoint_id: the endpoint.
            token_id: id of the token with which it was registered.
        """
        return self._with(self._endpoint, Account(AccountKind.ENDPOINT, endpoint_id, token_id))

    def _with(self, url: str, account: Account) -> str:
        return with_credentials(url, account.name, self._passwords.of(account.name))
