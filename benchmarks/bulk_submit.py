#!/usr/bin/env python3
"""Submits many calls that do nothing: in bulk, one by one, and with the official client.

The endpoint is not running, so that only client, service and broker are measured. With `--results`,
the same is measured with a running endpoint, until the last result is there.
"""

from __future__ import annotations

import argparse
import os
import statistics

from end_to_end_level import (
    client_variables,
    endpoint_id_of,
    our_endpoint_in,
    private,
    service_in,
)
from instance import instance
from peers import OURS, PEERS, run_program
from work import WORKERS

#: Ways to submit, each with a short text.
WAYS = {
    "bulk": "`executor.bulk_submit`",
    "loop": "`executor.submit` for each call",
    "official": "official client, `executor.submit` for each call",
}


def main() -> None:
    """Measure the requested ways in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["bulk", "loop"])
    parser.add_argument("--results", action="store_true", help="also run the calls")
    options = parser.parse_args()
    os.environ["FLUX_ENDPOINT_SERVICE_MAX_USER_TASKS"] = str(10**8)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    for _ in range(options.rounds):
        for way in options.ways:
            found[way].append(measure(way, options.calls, runs=options.results))
    columns = ["submit", "memory", *(["results"] if options.results else [])]
    print(
        f"{options.calls} calls: seconds to submit, MiB of memory that the client grows by", end=""
    )
    print(", seconds to the last result" if options.results else "")
    for way, rounds in found.items():
        values = (statistics.median(each[column] for each in rounds) for column in columns)
        print(f"{WAYS[way]:<50}", *(f"{value:10.2f}" for value in values))


def measure(way: str, calls: int, *, runs: bool) -> dict[str, float]:
    """Return the values of one way, on a stack of its own.

    Args:
        way: one of `WAYS`.
        calls: number of calls.
        runs: whether the endpoint runs.
    """
    with private() as directory, instance(1, WORKERS) as uri, service_in(directory) as service:
        home = directory / "endpoint"
        python = PEERS if way == "official" else OURS
        client = "official" if way == "official" else "ours"
        with our_endpoint_in(home, service, uri):
            chosen = {"endpoint_id": endpoint_id_of(home, "lab"), "way": way, "runs": runs}
            variables = client_variables(client, python, service, home)
            if runs:
                return dict(run_program(python, "bulk.py", {"submit": calls}, chosen, variables))
        return dict(run_program(python, "bulk.py", {"submit": calls}, chosen, variables))


if __name__ == "__main__":
    main()
