"""The answers to RabbitMQ's authorization requests."""

from collections.abc import Callable, Mapping

from flux_endpoint.service.access.passwords import Passwords
from flux_endpoint.service.access.rules import Resource, Topic, may
from flux_endpoint.service.access.trial import Trial
from flux_endpoint.service.store import accounts
from flux_endpoint.service.store.engine import Database


class Authority:
    """Answers authorization requests. Safe to use from several threads.

    Args:
        database: the service's database.
        passwords: the passwords of all accounts.
        vhost: the broker's virtual host that the service uses.
        limit: called with an account before its login is permitted.
    """

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        vhost: str,
        limit: Callable[[accounts.Account], None] = lambda _: None,
    ) -> None:
        self._limit = limit
        self._database = database
        self._passwords = passwords
        self._vhost = vhost
        self._trials: dict[str, Trial] = {}

    def admit(self, trial: Trial) -> None:
        """Accept the account of a trial until `dismiss`."""
        self._trials[trial.name] = trial

    def dismiss(self, trial: Trial) -> None:
        """Stop accepting the account of a trial."""
        self._trials.pop(trial.name, None)

    def answer(self, question: str, fields: Mapping[str, str]) -> bool:
        """Return whether RabbitMQ should permit an operation.

        Args:
            question: kind of request: `user`, `vhost`, `resource` or `topic`.
            fields: fields of the request.

        Raises:
            KeyError: a field is missing.
            DatabaseError: the database can't be read.
        """
        name = fields["username"]
        trial = self._trials.get(name)
        if trial is not None:
            return trial.answer(question, fields)
        account = accounts.parse_account(name)
        if account is None or not self._is_valid(question, fields):
            return False
        with self._database.read() as connection:
            if not accounts.is_alive(connection, account):
                return False
            if question not in {"user", "vhost"}:
                return may(
                    account,
                    _use(question, fields),
                    lambda group: accounts.owns_group(connection, account.owner_id, group),
                )
        if question == "user":
            self._limit(account)
        return True

    def _is_valid(self, question: str, fields: Mapping[str, str]) -> bool:
        """Return whether the password is correct, or the virtual host is that of this service."""
        if question == "user":
            return self._passwords.is_right(fields["username"], fields["password"])
        return fields["vhost"] == self._vhost


def _use(question: str, fields: Mapping[str, str]) -> Resource | Topic:
    if question == "topic":
        return Topic(fields["name"], fields["routing_key"], fields["permission"])
    return Resource(fields["resource"], fields["name"], fields["permission"])
