"""Requests of clients and endpoints to the REST service, with retries and errors."""

from __future__ import annotations

import email.utils
import logging
import os
import time
from collections.abc import Mapping
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from flux_endpoint import __version__
from flux_endpoint.backoff import Backoff
from flux_endpoint.credentials import Credentials
from flux_endpoint.errors import ConfigurationError, ServiceError, ServiceUnreachableError
from flux_endpoint.http_library import httpx
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

#: Methods whose requests may be repeated even if the service may have carried them out.
IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})
#: The longest wait (s) before the second attempt; it doubles for each further one, with jitter.
FIRST_BACKOFF = 1 / 3
#: The longest wait (s) between two attempts, and the upper limit for a `Retry-After` header.
MAX_BACKOFF = 10.0

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class RestClient:
    """Sends requests with a bearer token. Thread-safe.

    Args:
        credentials: URL of the service, and the user's token.
        timeout: the longest time (s) that one attempt may wait for the network.
        attempts: total number of attempts for each request, at least 1.

    Raises:
        ConfigurationError: the environment has an invalid proxy, or certificates that can't be
            read.

    Example:
        with RestClient(load_credentials()) as client:
            status = client.request("GET", f"/v2/endpoints/{endpoint_id}/status")
    """

    def __init__(self, credentials: Credentials, timeout: float = 60, *, attempts: int = 5) -> None:
        self.credentials = credentials
        self._attempts = max(1, attempts)
        self._timeout = timeout
        self._closed = Event()
        self._pid = os.getpid()
        self._http = self._pool()

    def _pool(self) -> httpx.Client:
        credentials = self.credentials
        try:
            return httpx.Client(
                base_url=credentials.service_url,
                timeout=self._timeout,
                headers={
                    "Authorization": f"Bearer {credentials.token}",
                    "Accept": "application/json",
                    "User-Agent": f"flux-endpoint/{__version__}",
                },
                # A site's proxy can't reach our own loopback interface.
                trust_env=urlsplit(credentials.service_url).hostname not in _LOOPBACK,
            )
        except OSError as error:
            raise ConfigurationError(
                f"can't read the certificates of authorities: {error.strerror}; SSL_CERT_FILE and "
                "SSL_CERT_DIR, where they are set, say which"
            ) from error
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigurationError(
                f"can't use the proxy of the environment (http_proxy, https_proxy): {error}"
            ) from error

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> dict[str, Any]:
        """Send a request and return the answer, a JSON object.

        Args:
            method: HTTP method.
            path: path below the service's URL, with a leading slash.
            json: body; bytes: its JSON; `None`: no body.
            params: query parameters.
            headers: additional headers.
            idempotent: whether the request may be repeated even if the service may have carried it
                out; by default, for all methods except POST and PATCH.

        Raises:
            ServiceError: the service refused the request, or its answer is not a JSON object.
            ServiceUnreachableError: all attempts failed or were answered with a server error.
            ConfigurationError: the environment has a proxy with an invalid host.
        """
        answer = self.request_json(
            method, path, json=json, params=params, headers=headers, idempotent=idempotent
        )
        if not isinstance(answer, dict):
            raise self._not_ours(
                method, path, 200, f"a JSON {type(answer).__name__} and not an object"
            )
        return answer

    def request_json(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> Any:
        """Send a request and return the answer, any JSON value; `None`: the body is empty.

        It has the arguments and errors of `request`.
        """
        repeatable = method in IDEMPOTENT_METHODS if idempotent is None else idempotent
        url = f"{self.credentials.service_url}{path}"
        if self._pid != os.getpid():
            # A forked child must not use its parent's connections, nor wait for its locks.
            self._http, self._pid = self._pool(), os.getpid()
        sent = {"params": params, **_body(json, headers)}
        backoff = Backoff(FIRST_BACKOFF, MAX_BACKOFF)
        for attempt in range(1, self._attempts + 1):
            response: httpx.Response | None = None
            try:
                if self.credentials.stack_is_down:  # another program may listen on its port
                    raise httpx.ConnectError("the stack that runs it is down")
                response = self._http.request(method, path, **sent)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                again, reason = True, f"no connection ({error})"  # nothing was sent
            except httpx.RequestError as error:
                again, reason = repeatable, f"{type(error).__name__}: {error}".rstrip(": ")
            except (httpx.InvalidURL, UnicodeError) as error:  # the service's URL is valid
                raise ConfigurationError(
                    "can't use the proxy of the environment (http_proxy, https_proxy): its URL "
                    "names no host"
                ) from error
            else:
                status = response.status_code
                if status < 500 and status != 429:
                    return self._answer(method, path, response)
                again = repeatable or status == 429  # 429 means that it was not carried out
                reason = f"it answered {status} {response.reason_phrase}"
            if not again or attempt == self._attempts:
                break
            wait = _wait_before_next(next(backoff), response)
            event(log, logging.DEBUG, "request will be repeated", url=url, reason=reason, wait=wait)
            if self._closed.wait(wait):
                break
        if response is not None and response.status_code == 429:
            raise self._refusal(method, path, response)
        raise ServiceUnreachableError(_unreachable(method, url, reason, response, attempt))

    def close(self) -> None:
        """Close all connections, and end waits between attempts. Afterwards it can't be used."""
        self._closed.set()
        self._http.close()

    def __enter__(self) -> RestClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, method: str, path: str, response: httpx.Response) -> Any:
        if not response.is_success:
            raise self._refusal(method, path, response)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise self._not_ours(
                method, path, response.status_code, "something other than JSON"
            ) from None

    def _refusal(self, method: str, path: str, response: httpx.Response) -> ServiceError:
        status = response.status_code
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return self._not_ours(method, path, status, f"{status} without a JSON error")
        code = body.get("code")
        code = code if isinstance(code, str) else f"HTTP_{status}"
        message = next(
            (body[k] for k in ("message", "reason", "detail") if isinstance(body.get(k), str)), ""
        )
        text = f"{method} {self.credentials.service_url}{path}: {message or response.reason_phrase}"
        field = body.get("field")
        if status == 401:
            text = (
                f"{self.credentials.service_url} does not accept the token from "
                f"{self.credentials.source}: {message or 'unauthorized'}. Get a valid token from "
                "whoever runs the service, or make sure that the service URL is the right one"
            )
        elif isinstance(field, str) and field not in message:
            text += f" (field {field!r})"
        return ServiceError(
            text,
            http_status=status,
            code=code,
            field=field if isinstance(field, str) else None,
        )

    def _not_ours(self, method: str, path: str, status: int, got: str) -> ServiceError:
        return ServiceError(
            f"{method} {self.credentials.service_url}{path} was answered with {got}: "
            f"is the URL from {self.credentials.source} that of a Flux Endpoint service?",
            http_status=status,
            code="NOT_A_FLUX_ENDPOINT_SERVICE",
        )


def _body(json: Any, headers: Mapping[str, str] | None) -> dict[str, Any]:
    """Return httpx's arguments for a body and further headers."""
    if isinstance(json, bytes):
        return {"content": json, "headers": {**(headers or {}), "Content-Type": "application/json"}}
    return {"json": json, "headers": headers}


def _unreachable(
    method: str, url: str, reason: str, response: httpx.Response | None, attempts: int
) -> str:
    tried = "" if attempts == 1 else f" ({attempts} attempts)"
    if response is None:
        return f"can't reach the service for {method} {url}{tried}: {reason}"
    message = ""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        message = f": {body['message']}"
    return f"the service can't serve {method} {url} now{tried}: {reason}{message}"


def _wait_before_next(pause: float, response: httpx.Response | None) -> float:
    if response is None:
        return pause
    return min(max(pause, _retry_after(response.headers.get("Retry-After"))), MAX_BACKOFF)


def _retry_after(value: str | None) -> float:
    if not value:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
