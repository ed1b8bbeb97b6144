"""The answers to RabbitMQ's questions."""

from collections.abc import Callable, Mapping

from flux_endpoint.service.access.passwords import Passwords
from flux_endpoint.service.access.rules import Resource, Topic, may
from flux_endpoint.service.access.trial import Trial
from flux_endpoint.service.store import accounts
from flux_endpoint.service.store.engine import Database


class Authority:
    """Knows who may do what. Safe to use from several threads.

    Args:
        database: which tokens, endpoints and task groups there are.
        passwords: those of all accounts.
        vhost: the broker's virtual host that the service uses.
        limit: called before an account is let in.
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
        """Let the account of a trial in until `dismiss`."""
        self._trials[trial.name] = trial

    def dismiss(self, trial: Trial) -> None:
        """Know nothing any more of the account of a trial."""
        self._trials.pop(trial.name, None)

    def answer(self, question: str, fields: Mapping[str, str]) -> bool:
        """Return whether RabbitMQ shall allow something.

        Args:
            question: `user`, `vhost`, `resource` or `topic`.
            fields: what RabbitMQ says with it.

        Raises:
            KeyError: a field is missing.
            DatabaseError: the database can't be asked.
        """
        name = fields["username"]
        trial = self._trials.get(name)
        if trial is not None:
            return trial.answer(question, fields)
        account = accounts.parse_account(name)
        if account is None or not self._is_meant(question, fields):
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

    def _is_meant(self, question: str, fields: Mapping[str, str]) -> bool:
        """Return whether the password is right, or the virtual host is this service's."""
        if question == "user":
            return self._passwords.is_right(fields["username"], fields["password"])
        return fields["vhost"] == self._vhost


def _use(question: str, fields: Mapping[str, str]) -> Resource | Topic:
    if question == "topic":
        return Topic(fields["name"], fields["routing_key"], fields["permission"])
    return Resource(fields["resource"], fields["name"], fields["permission"])
