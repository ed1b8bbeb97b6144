"""Dependencies, retries and kept results of Dask, with a scheduler and workers on this machine."""

from __future__ import annotations

from typing import Any

from distributed import Client, LocalCluster  # type: ignore[import-not-found]

from feature_work import FAILURES, measure
from work import WORKERS, Turn


def main() -> None:
    turn = Turn()
    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):

        def retry(function: Any, argument: Any) -> Any:
            return client.submit(function, argument, retries=FAILURES)

        measure(turn, chain=client.submit, retry=retry, cache=client.submit)


if __name__ == "__main__":
    main()
