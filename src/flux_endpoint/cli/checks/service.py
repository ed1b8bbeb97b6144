"""The service: its address, our user, its clock, its database, its broker."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from flux_endpoint import __version__
from flux_endpoint.cli.checks.finding import Finding, failed, ok, skipped, warning
from flux_endpoint.cli.checks.machine import ENOUGH_DISK, LEAST_DISK, check_private
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import shown_bytes, shown_duration
from flux_endpoint.credentials import TOKEN_VARIABLE, URL_VARIABLE, Credentials, load_credentials
from flux_endpoint.errors import FluxEndpointError, ServiceError
from flux_endpoint.http_library import httpx
from flux_endpoint.paths import credentials_file
from flux_endpoint.protocol.operations import DatabaseDocument, ServiceStatusAnswer

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
#: Tolerated difference of two clocks, in seconds.
MOST_SKEW = 5.0
#: Seconds for a query of one row above which a database is slow.
SLOW_QUERY = 0.5
#: Number of waiting results above which the service does not keep up.
BACKLOG = 10_000

_TIMEOUT = 10.0
_PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_AUTHORITIES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


class ServiceChecks:
    """Checks the service, and keeps its answer for other checks.

    Attributes:
        api: client of the service, once it has accepted our token.
        answer: the service's status.
    """

    def __init__(self) -> None:
        self.api: OperatorApi | None = None
        self.answer: ServiceStatusAnswer | None = None

    def run(self) -> Iterator[Finding]:
        """Yield the findings on the service."""
        try:
            credentials = load_credentials()
        except FluxEndpointError as error:
            yield failed("service.credentials", str(error), _mend_credentials())
            return
        yield from _credentials(credentials)
        reached = list(_reach(credentials))
        yield from reached
        if any(each.state == "failed" for each in reached):
            return
        yield from self._ask()

    def _ask(self) -> Iterator[Finding]:
        api = OperatorApi()
        before = time.time()
        try:
            answer = api.status()
        except FluxEndpointError as error:
            yield _refusal(error)
            return
        after = time.time()
        self.api, self.answer = api, answer
        yield ok("service.token", f"the token is that of user {answer.user}")
        yield _release(answer.version)
        yield _clock(answer.time - (before + after) / 2, after - before)
        yield from _database(answer.database)
        yield from _broker(answer)


def _mend_credentials() -> str:
    """Return what to do if there are no usable credentials."""
    if any(os.environ.get(name) for name in (URL_VARIABLE, TOKEN_VARIABLE)):
        return (
            f"correct {URL_VARIABLE} and {TOKEN_VARIABLE} (the service's operator knows its URL, "
            "and makes tokens), or unset both"
        )
    try:
        file = credentials_file()
        missing = not file.exists()
    except (OSError, FluxEndpointError):
        return "fix the state directory"
    if not missing:
        return f"correct {file}, or set {URL_VARIABLE} and {TOKEN_VARIABLE} instead"
    return (
        "ask the service's operator for a token (`flux-endpoint service token create`), or run "
        "one of your own: flux-endpoint up"
    )


def _credentials(credentials: Credentials) -> Iterator[Finding]:
    yield ok("service.credentials", f"from {credentials.source}")
    with contextlib.suppress(OSError, FluxEndpointError):  # credentials from the environment
        file = credentials_file()
        if file.exists():
            yield check_private("service.credentials", file)
    parts = urlsplit(credentials.service_url)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        yield warning(
            "service.url",
            f"{credentials.service_url} is not encrypted: eavesdroppers learn the token",
            "have the service behind a TLS proxy, and use its https:// URL",
        )


def _reach(credentials: Credentials) -> Iterator[Finding]:
    url = credentials.service_url
    here = urlsplit(url).hostname in LOOPBACK
    try:
        response = httpx.get(f"{url}/v2/version", timeout=_TIMEOUT, trust_env=not here)
    except httpx.HTTPError as error:
        said, mend = _why_unreachable(error)
        yield failed("service.url", f"can't reach {url}: {said}", mend + _proxy_hint(here))
        return
    except (ValueError, httpx.InvalidURL) as error:  # an invalid URL of a proxy
        named = ", ".join(_proxies()) or "the proxy's variable"
        yield failed("service.url", f"can't reach {url}: {error}", f"correct or unset {named}")
        return
    except OSError as error:
        named = " and ".join(name for name in _AUTHORITIES if os.environ.get(name))
        yield failed(
            "service.url",
            f"can't read the certificates of authorities: {error.strerror}",
            f"correct or unset {named or 'SSL_CERT_FILE'}",
        )
        return
    if response.status_code >= 500:
        yield failed(
            "service.url",
            f"{url} answers {response.status_code} {response.reason_phrase}",
            "see the service's log: flux-endpoint logs service, on its host",
        )
    elif not response.is_success or not _is_version(response):
        yield failed(
            "service.url",
            f"what answers at {url} is no Flux Endpoint service ({response.status_code})",
            f"correct the URL in {credentials.source}",
        )
    else:
        yield ok("service.url", f"{url} answers")


def _is_version(response: httpx.Response) -> bool:
    try:
        return isinstance(response.json(), str)
    except ValueError:
        return False


def _why_unreachable(error: httpx.HTTPError) -> tuple[str, str]:
    causes = [error, error.__cause__, error.__context__]
    while causes[-1] is not None and causes[-1].__context__ is not None:
        causes.append(causes[-1].__context__)
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return "its name can't be resolved", "check the URL, and the resolver (getent hosts)"
        if isinstance(cause, ssl.SSLCertVerificationError):
            mend = (
                "have the service use a certificate of an authority that this machine trusts; "
                "SSL_CERT_FILE names another list of authorities"
            )
            return f"its certificate can't be verified ({cause.verify_message})", mend
        if isinstance(cause, ssl.SSLError):
            return "the TLS handshake failed", "is it http:// rather than https://?"
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there", "start the service: flux-endpoint service run, or up"
    if isinstance(error, httpx.TimeoutException):
        mend = "is a firewall in between? Else look into its log, on its host"
        return f"no answer in {_TIMEOUT:g} s", mend
    return str(error) or type(error).__name__, "check the URL and the network"


def _proxies() -> list[str]:
    return [name for name in _PROXIES if os.environ.get(name)]


def _proxy_hint(here: bool) -> str:
    named = _proxies()
    if here or not named:
        return ""
    return f". ({', '.join(named)} is set: no_proxy may have to name the service's host)"


def _refusal(error: FluxEndpointError) -> Finding:
    if isinstance(error, ServiceError) and error.http_status == 401:
        return failed(
            "service.token",
            str(error),
            "get a new token: flux-endpoint service token create NAME, on the service's host",
        )
    if isinstance(error, ServiceError):
        return failed("service.release", str(error), "bring service and command to one release")
    return failed("service.url", str(error), "see the service's log, on its host")


def _release(version: str) -> Finding:
    if version == __version__:
        return ok("service.release", f"it is of the same release, {version}")
    return warning(
        "service.release",
        f"the service is of release {version}, this command of {__version__}",
        "bring both to the newer one",
    )


def _clock(skew: float, uncertainty: float) -> Finding:
    if abs(skew) <= MOST_SKEW + uncertainty:
        return ok("service.clock", f"its clock and ours differ by {shown_duration(abs(skew))}")
    which = "ahead of" if skew > 0 else "behind"
    return warning(
        "service.clock",
        f"its clock is {shown_duration(abs(skew))} {which} ours: ages and durations are wrong",
        "synchronize both clocks (timedatectl set-ntp true, or chrony)",
    )


def _database(database: DatabaseDocument) -> Iterator[Finding]:
    if database.revision != database.expected_revision:
        yield failed(
            "service.database",
            f"its schema is {database.revision}, the service works with "
            f"{database.expected_revision}",
            "restart the service (or run `flux-endpoint service migrate`) with the newer release",
        )
    elif database.seconds > SLOW_QUERY:
        yield warning(
            "service.database",
            f"{database.kind} took {shown_duration(database.seconds)} for a query",
            "look at the load of its host and disk",
        )
    else:
        said = f"{database.kind}, schema {database.revision}"
        yield ok("service.database", f"{said}, {shown_duration(database.seconds)} for a query")
    free = database.free_bytes
    if free is None:
        return
    said = f"{shown_bytes(free)} free on the database's disk"
    if free >= ENOUGH_DISK:
        yield ok("service.disk", said)
    elif free < LEAST_DISK:
        yield failed("service.disk", said, "make room there: the service can't store tasks soon")
    else:
        yield warning("service.disk", said, "make room there")


def _broker(answer: ServiceStatusAnswer) -> Iterator[Finding]:
    broker = answer.broker
    if not broker.connected:
        yield failed(
            "service.broker",
            f"the service can't reach its broker at {broker.address or 'its URL'}: {broker.reason}",
            "start RabbitMQ there, or correct the service's --amqp-url",
        )
        return
    if broker.alarm:
        yield failed(
            "service.broker",
            f"{broker.server} at {broker.address} takes no messages: {broker.alarm}; tasks, "
            "results and status reports wait until it does",
            "make room on its host (rabbitmq-diagnostics alarms tells which), or raise "
            "vm_memory_high_watermark or lower disk_free_limit",
        )
        return
    yield ok("service.broker", f"the service is connected to {broker.server} at {broker.address}")
    queues = answer.queues
    for name in ("results", "events", "heartbeats"):
        if name in queues and queues[name].consumers == 0:
            yield failed(
                "service.queues",
                f"nothing consumes the queue {name}",
                "restart the service; see its log",
            )
    if "results" in queues and queues["results"].messages > BACKLOG:
        yield warning(
            "service.queues",
            f"{queues['results'].messages} results wait for the service",
            "look at the load of its host, and at its database",
        )
    aside = queues["dead-letters"].messages if "dead-letters" in queues else 0
    if aside:
        yield warning(
            "service.queues",
            f"{aside} unreadable or unroutable messages are in the queue dead-letters",
            "the logs of service and endpoints name them; drop them with: rabbitmqctl purge_queue "
            "dead-letters",
        )
    elif queues:
        yield ok("service.queues", "its queues have consumers, and there are no dead letters")
    else:
        yield skipped("service.queues", "the broker did not answer in time")
