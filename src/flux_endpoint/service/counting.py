"""Counts the dependents of tasks that have more than the transaction of a result may change."""

from collections import deque
from collections.abc import Generator, Iterable

from flux_endpoint.service.store import dependencies
from flux_endpoint.service.store.engine import Database


class Counting:
    """Counts page by page. For one thread.

    The pages are not recorded: what a service has not counted when it ends, the next start does.

    Args:
        database: the service's database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Ended tasks whose dependents are to be counted; `None`: all tasks that wait.
        self._needs: deque[str | None] = deque()
        self._pages: Generator[list[str]] | None = None

    def add(self, needs: Iterable[str | None]) -> None:
        """Count the dependents of ended tasks; of `None`: all tasks that wait."""
        self._needs.extend(needs)

    def close(self) -> None:
        """End the transaction that reads."""
        if self._pages is not None:
            self._pages.close()

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to count."""
        return not self._needs

    def step(self) -> None:
        """Count one page.

        Raises:
            SQLAlchemyError: the database is busy, full or unreachable; the next step begins anew.
        """
        try:
            if self._pages is None:
                self._pages = self._read(self._needs[0])
            page = next(self._pages, None)
            if page is None:
                self._pages = None
                self._needs.popleft()
                return
            with self._database.write() as connection:
                dependencies.recount(connection, page)
        except BaseException:
            self.close()
            self._pages = None  # counting a page once more changes nothing
            raise

    def _read(self, need: str | None) -> Generator[list[str]]:
        with self._database.read() as connection:
            yield from dependencies.waiting_tasks(connection, need)
