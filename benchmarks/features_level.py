"""Measures tasks that wait for tasks, retries and remembered results, where a peer has them.

Our tasks pass client, broker, service and endpoint, and are kept by the service. The peers' stay
with the program that submits them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from end_to_end_level import endpoint_id_of, private, running
from instance import instance
from levels import Answer, Comparison, Level, Row, Station
from peers import OURS, PEERS, environment, run_program
from work import WORKERS

_ROWS = ("chain", "retries", "cached")


@dataclass(frozen=True)
class Peer:
    """A peer that is measured.

    Args:
        key: its name in the data.
        title: its name in the tables.
        program: file name of its program in `contenders/`.
        rows: keys of the rows in which it is measured.
        in_flux: whether it gets its own Flux instance.
    """

    key: str
    title: str
    program: str
    rows: tuple[str, ...] = _ROWS
    in_flux: bool = False

    def take_turn(self, counts: dict[str, int]) -> Iterator[Answer]:
        """Run the program."""
        with contextlib.ExitStack() as stack:
            more = {}
            if self.in_flux:
                more["FLUX_URI"] = stack.enter_context(instance(1, WORKERS))
            variables = environment(PEERS, **more)
            for row, value in run_program(PEERS, self.program, counts, {}, variables):
                yield Answer(row, self.key, value)


def ours(counts: dict[str, int]) -> Iterator[Answer]:
    """Measure our Executor through service and endpoint."""
    with private() as directory, running(directory, Path(OURS)) as (service, home):
        options = {"endpoint_id": endpoint_id_of(home, "lab")}
        variables = environment(OURS, FLUX_ENDPOINT_HOME=str(service.home))
        for row, value in run_program(OURS, "features_ours.py", counts, options, variables):
            yield Answer(row, "ours", value)


PEERS_MEASURED = [
    Peer("parsl", "Parsl (HTEX)", "features_parsl.py"),
    Peer(
        "executorlib",
        "executorlib in Flux, block allocation",
        "features_executorlib.py",
        ("chain", "cached"),
        in_flux=True,
    ),
    Peer("dask", "Dask (LocalCluster)", "features_dask.py"),
]

FEATURES = Level(
    key="features",
    title="Dependencies, retries, remembered results",
    rows=[
        Row("chain", "chain of tasks, each takes the result of the last", "ms", 200, 40, "less"),
        Row("retries", "one task that fails 3 times, p50", "ms", 20, 3, "less"),
        Row("cached", "one call whose result is known, p50", "ms", 100, 10, "less"),
    ],
    contenders={
        "ours": "ours, end to end in Flux",
        **{each.key: each.title for each in PEERS_MEASURED},
    },
    stations=[
        Station("ours, end to end", _ROWS, ours),
        *(Station(each.title, each.rows, each.take_turn) for each in PEERS_MEASURED),
    ],
    comparisons=[
        Comparison(row, "ours", each.key)
        for row in _ROWS
        for each in PEERS_MEASURED
        if row in each.rows
    ],
)
