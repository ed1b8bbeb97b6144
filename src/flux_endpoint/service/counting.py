"""Counts the dependents of tasks that have more than the transaction of a result may change."""

from collections import deque
from collections.abc import Iterable

from flux_endpoint.service.store import dependencies
from flux_endpoint.service.store.engine import Database


class Counting:
    """Counts page by page. For one thread.

    The pages are not recorded: what a service has not counted when it ends, another one finds.

    Args:
        database: the service's database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Ended tasks whose dependents are to be counted; `None`: all tasks that wait.
        self._needs: deque[str | None] = deque()
        #: Tasks of the next pages, and the last one of the page before.
        self._found: list[str] = []
        self._after = ""

    def add(self, needs: Iterable[str | None]) -> None:
        """Count the dependents of ended tasks; of `None`: of all whose count is wrong."""
        self._needs.extend(needs)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to count."""
        return not self._needs

    def step(self) -> bool:
        """Count one page; return whether it had tasks to count.

        Raises:
            SQLAlchemyError: the database is busy, full or unreachable; the next step counts the
                same page.
        """
        need = self._needs[0]
        with self._database.read() as connection:
            if need is None:
                page, last = dependencies.uncounted(connection, self._after)
            else:
                if not self._found:
                    self._found = dependencies.needing(connection, need, self._after)
                page = self._found[: dependencies.PAGE_COUNTED]
                last = page[-1] if page else None
        if page:
            with self._database.write() as connection:
                dependencies.recount(connection, page)
            del self._found[: len(page)]
        if last is None:
            self._needs.popleft()
        self._after = last or ""
        return bool(page)
