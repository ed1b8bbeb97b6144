"""Measures the applications of the task performance suite TaPS, an independent project."""

from __future__ import annotations

from collections.abc import Iterator

from end_to_end_level import client_variables, endpoint_id_of, private, running
from levels import Answer, Comparison, Level, Row, Station
from peers import TAPS, environment, run_program

_PROGRAM = "taps_apps.py"
_ROWS = ("taps-bag", "taps-sequential", "taps-cholesky", "taps-mapreduce")


def on_our_endpoint(counts: dict[str, int]) -> Iterator[Answer]:
    """Measure both clients on our endpoint; TaPS is installed for its tasks."""
    with private() as directory, running(directory, TAPS) as (service, home):
        endpoint_id = endpoint_id_of(home, "lab")
        for client, contender in {"ours": "taps-ours", "official": "taps-official"}.items():
            options = {"executor": client, "endpoint_id": endpoint_id}
            variables = client_variables(client, TAPS, service, home)
            for row, value in run_program(TAPS, _PROGRAM, counts, options, variables):
                yield Answer(row, contender, value)


def _alone(kind: str, counts: dict[str, int]) -> Iterator[Answer]:
    for row, value in run_program(TAPS, _PROGRAM, counts, {"executor": kind}, environment(TAPS)):
        yield Answer(row, f"taps-{kind}", value)


def pool(counts: dict[str, int]) -> Iterator[Answer]:
    """Measure the process pool of TaPS."""
    return _alone("pool", counts)


def dask(counts: dict[str, int]) -> Iterator[Answer]:
    """Measure Dask with local processes."""
    return _alone("dask", counts)


_PEERS = ("taps-pool", "taps-official", "taps-dask")

TAPS_APPS = Level(
    key="taps",
    title="Applications of TaPS",
    rows=[
        Row("taps-bag", "bag of tasks", "s", 500, 50, "less"),
        Row("taps-sequential", "one task after the other", "s", 30, 5, "less"),
        Row("taps-cholesky", "Cholesky decomposition, tiles a side", "s", 6, 3, "less"),
        Row("taps-mapreduce", "words of files", "s", 32, 8, "less"),
    ],
    contenders={
        "taps-ours": "our client, our endpoint",
        "taps-official": "official client, our endpoint",
        "taps-dask": "Dask",
        "taps-pool": "limit: ProcessPoolExecutor",
    },
    stations=[
        Station("our endpoint", _ROWS, on_our_endpoint),
        Station("Dask", _ROWS, dask),
        Station("ProcessPoolExecutor", _ROWS, pool),
    ],
    comparisons=[
        Comparison(
            row,
            "taps-ours",
            peer,
            2 if peer == "taps-pool" and row != "taps-sequential" else None,
        )
        for peer in _PEERS
        for row in _ROWS
    ],
)
