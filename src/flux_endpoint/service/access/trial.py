"""A check that the broker asks this service about every step, and obeys the answers.

A random account logs in and publishes to an exchange that every virtual host has. The service
permits each step but the last one, the routing key.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import pika
import pika.exceptions

from flux_endpoint.amqp.authorization import QUESTIONS
from flux_endpoint.amqp.url import address_of, connection_parameters, reason_of, with_credentials

_EXCHANGE = "amq.topic"
_HEARTBEAT = 20
#: The names of these accounts begin with it.
TRIAL_PREFIX = "trial-"


class Verdict(Enum):
    """The result of a trial."""

    ASKS = "asks"
    DOES_NOT_ASK = "does not ask"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class TrialOutcome:
    """The result of a trial, with a reason.

    Attributes:
        verdict: the result.
        reason: one sentence; empty if the broker asks.
    """

    verdict: Verdict
    reason: str = ""


class Trial:
    """One trial, with its own account."""

    def __init__(self) -> None:
        self.name = f"{TRIAL_PREFIX}{secrets.token_hex(16)}"
        self.password = secrets.token_hex(16)
        #: The kinds of requests that have arrived.
        self.asked: set[str] = set()

    def answer(self, question: str, fields: Mapping[str, str]) -> bool:
        """Answer an authorization request about this account.

        Args:
            question: kind of request: `user`, `vhost`, `resource` or `topic`.
            fields: fields of the request.

        Raises:
            KeyError: a field is missing.
        """
        self.asked.add(question)
        match question:
            case "user":
                return secrets.compare_digest(fields["password"], self.password)
            case "vhost":
                return True
            case "resource":
                return (fields["name"], fields["permission"]) == (_EXCHANGE, "write")
        return False

    def run(self, amqp_url: str) -> TrialOutcome:
        """Log in and publish at the broker of `amqp_url`; a refusal takes a few seconds."""
        url = with_credentials(amqp_url, self.name, self.password)
        parameters = connection_parameters(url, name="service-trial", heartbeat=_HEARTBEAT)
        refused = ""
        try:
            with pika.BlockingConnection(parameters) as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                channel.basic_publish(_EXCHANGE, self.name, b"")
        except pika.exceptions.ChannelClosedByBroker as error:
            refused = str(error.reply_text)
        except Exception as error:  # noqa: BLE001 - pika has errors of several families
            if not _is_refusal(error):
                return TrialOutcome(
                    Verdict.UNREACHABLE, f"{address_of(amqp_url)}: {reason_of(error)}"
                )
            refused = reason_of(error)
        missing = [each for each in QUESTIONS if each not in self.asked]
        if not missing and refused:
            return TrialOutcome(Verdict.ASKS)
        if not self.asked:
            return TrialOutcome(Verdict.DOES_NOT_ASK, "it did not ask at all")
        what = " and ".join(missing)
        reason = f"it did not ask about {what}" if missing else "it ignored the answer"
        return TrialOutcome(Verdict.DOES_NOT_ASK, f"{reason} ({refused or 'allowed anyway'})")


def _is_refusal(error: BaseException) -> bool:
    """Return whether the broker has refused the account; otherwise the connection has failed."""
    if isinstance(error, pika.exceptions.ConnectionClosedByBroker):
        return error.reply_code in _REFUSED
    return isinstance(error, _REFUSALS)


#: AMQP reply codes: access refused, not allowed.
_REFUSED = (403, 530)
_REFUSALS = (
    pika.exceptions.AuthenticationError,
    pika.exceptions.ProbableAuthenticationError,
    pika.exceptions.ProbableAccessDeniedError,
)
