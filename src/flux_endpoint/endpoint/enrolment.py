"""An endpoint's own token: obtained once with its owner's credentials, then used alone.

The token only allows its holder to act as this endpoint. So an agent needs none of its owner's
credentials, and the token that its tasks can read is worth no more than that.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from typing import Any

from flux_endpoint import paths
from flux_endpoint.credentials import URL_VARIABLE, Credentials, load_credentials
from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.endpoint.registration import Registration, read_endpoint_id
from flux_endpoint.errors import ConfigurationError, FluxEndpointError, ServiceError
from flux_endpoint.logs import event
from flux_endpoint.protocol.queues import EndpointQueues
from flux_endpoint.rest import RestClient

log = logging.getLogger(__name__)


class Enrolment:
    """Registers an endpoint with its own token, which it first obtains with the owner's if needed.

    Args:
        directory: the endpoint's directory; its `token.json` has the token.
        registration: returns the registration that uses a client.
        timeout: timeout of one request in seconds.
    """

    def __init__(
        self,
        directory: EndpointDirectory,
        registration: Callable[[RestClient], Registration],
        timeout: float,
    ) -> None:
        self._directory = directory
        self._make_registration = registration
        self._timeout = timeout
        self._rest: RestClient | None = None

    def __enter__(self) -> Enrolment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    @property
    def rest(self) -> RestClient:
        """Client of the service with the endpoint's token; available after `register`."""
        assert self._rest is not None
        return self._rest

    @property
    def registration(self) -> Registration:
        """The registration with the endpoint's token; available after `register`."""
        return self._make_registration(self.rest)

    def register(self) -> EndpointQueues:
        """Register, and return how to reach the broker.

        Raises:
            ServiceError: the service refused; the text says what to do.
            ServiceUnreachableError: the service can't be reached now; try again later.
            ConfigurationError: there are no credentials, or a file is damaged.
        """
        own = self._own_credentials()
        if own is not None:
            try:
                return self._register(own)
            except ServiceError as error:
                if error.http_status != HTTPStatus.UNAUTHORIZED:
                    raise
                owner = self._owner_after(own, error)
        else:
            owner = load_credentials()
        return self._register(self._enrol(owner))

    def renew(self) -> EndpointQueues:
        """Register again while the endpoint runs, only with its own token.

        Raises:
            ServiceError: the service refused, for example because the endpoint was deleted.
            ServiceUnreachableError: the service can't be reached now; try again later.
            ConfigurationError: `endpoint.json` is damaged.
        """
        try:
            return self.registration.register()
        except ServiceError as error:
            if error.http_status != HTTPStatus.UNAUTHORIZED:
                raise
            raise error.saying(
                f"{self.rest.credentials.service_url} does not know the endpoint's own token any "
                "more: it was revoked, or the endpoint deleted. A start with its owner's "
                "credentials registers it again"
            ) from error

    def _enrol(self, owner: Credentials) -> Credentials:
        """Register as the owner, and return new credentials of the endpoint."""
        with RestClient(owner, self._timeout, attempts=1) as rest:
            endpoint_id = self._make_registration(rest).register().endpoint_id
            try:
                answer = rest.request("POST", f"/v3/endpoints/{endpoint_id}/tokens")
            except ServiceError as error:
                if error.http_status not in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}:
                    raise
                raise error.saying(
                    f"{owner.service_url} gives endpoints no tokens of their own: it is of an "
                    "earlier release. Upgrade the service before its endpoints"
                ) from error
        content = {
            "service_url": owner.service_url,
            "endpoint_id": endpoint_id,
            "token": answer.get("token"),
        }
        paths.write_private(self._directory.token, json.dumps(content, indent=2) + "\n")
        event(
            log,
            logging.INFO,
            "the endpoint has its own token and no longer needs its owner's",
            file=str(self._directory.token),
        )
        return self._credentials(content)

    def _register(self, own: Credentials) -> EndpointQueues:
        if self._rest is None or self._rest.credentials != own:
            self._leave()
            self._rest = RestClient(own, self._timeout, attempts=1)
        return self._make_registration(self._rest).register()

    def _leave(self) -> None:
        if self._rest is not None:
            self._rest.close()
            self._rest = None

    def _own_credentials(self) -> Credentials | None:
        """Return the credentials in `token.json`, or `None` if it has none for this endpoint."""
        file = self._directory.token
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{file} must hold the endpoint's own token, but is damaged ({error}): delete it, "
                "and start once with the owner's credentials"
            ) from None
        if not isinstance(content, dict) or not content.get("token"):
            raise ConfigurationError(
                f"{file} holds no token: delete it, and start once with the owner's credentials"
            )
        if content.get("endpoint_id") != read_endpoint_id(self._directory.identity):
            return None  # a copy of another endpoint's directory, for a new endpoint
        return self._credentials(content)

    def _credentials(self, content: dict[str, Any]) -> Credentials:
        # The service may have a new address: the owner's settings take precedence over the file.
        try:
            url = os.environ.get(URL_VARIABLE) or load_credentials().service_url
        except ConfigurationError:
            url = str(content.get("service_url"))
        return Credentials(url, str(content["token"]), source=str(self._directory.token))

    def _owner_after(self, own: Credentials, refusal: ServiceError) -> Credentials:
        """Return the owner's credentials, because the endpoint's own were refused."""
        try:
            owner = load_credentials()
        except FluxEndpointError as error:
            raise refusal.saying(
                f"{own.service_url} does not know the endpoint's own token in {own.source} any "
                "more: it was revoked, or the endpoint deleted. Start it once with its owner's "
                f"credentials, which get it a new one ({error})"
            ) from refusal
        event(
            log, logging.WARNING, "the endpoint's own token is no longer valid; requesting another"
        )
        return owner
