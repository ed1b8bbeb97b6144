"""Dependencies, retries and remembered results of our Executor."""

from __future__ import annotations

from feature_work import FAILURES, measure
from flux_endpoint import Executor
from work import Turn


def main() -> None:
    turn = Turn()
    endpoint = turn.options["endpoint_id"]
    with Executor(endpoint) as executor, Executor(endpoint, cache=True) as caching:
        patient = executor.using(retries=FAILURES, retry_delay=0)
        measure(turn, chain=executor.submit, retry=patient.submit, cache=caching.submit)


if __name__ == "__main__":
    main()
