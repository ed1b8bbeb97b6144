"""A trial of the broker: does it ask this service about every step, and heed the answers?

An account that nobody knows logs in, and publishes to an exchange that every virtual host has. It
is allowed up to the last step, the routing key.
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


class Verdict(Enum):
    """How a trial ended."""

    ASKS = "asks"
    DOES_NOT_ASK = "does not ask"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class TrialOutcome:
    """What a trial has shown.

    Attributes:
        verdict: in a word.
        reason: one sentence, unless the broker asks.
    """

    verdict: Verdict
    reason: str = ""


class Trial:
    """One trial, with an account of its own."""

    def __init__(self) -> None:
        self.name = f"trial-{secrets.token_hex(16)}"
        self.password = secrets.token_hex(16)
        #: The questions that have come.
        self.asked: set[str] = set()

    def answer(self, question: str, fields: Mapping[str, str]) -> bool:
        """Answer a question about this account."""
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
        """Go through all steps at the broker of `amqp_url`; takes its time to be refused."""
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
        reason = f"it did not ask about {what}" if missing else "it did not heed the answer"
        return TrialOutcome(Verdict.DOES_NOT_ASK, f"{reason} ({refused or 'allowed all the same'})")


def _is_refusal(error: BaseException) -> bool:
    """Return whether the broker has refused the account, and not gone away itself."""
    if isinstance(error, pika.exceptions.ConnectionClosedByBroker):
        return error.reply_code in _REFUSED
    return isinstance(error, _REFUSALS)


#: Access refused, not allowed.
_REFUSED = (403, 530)
_REFUSALS = (
    pika.exceptions.AuthenticationError,
    pika.exceptions.ProbableAuthenticationError,
    pika.exceptions.ProbableAccessDeniedError,
)
