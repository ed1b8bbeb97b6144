"""Measures throughput with more queued tasks, and with larger results."""

from __future__ import annotations

from end_to_end_level import END_TO_END, official_endpoint, our_endpoint
from engine_level import ENGINES
from levels import Comparison, Level, Row, Station

#: Numbers of tasks that are submitted at once.
QUEUED = (1_000, 10_000, 100_000)
#: Number of tasks by size (bytes) of each result.
RESULTS = {1 << 10: 1000, 32 << 10: 500, 1 << 20: 50, 4 << 20: 20}
_ENGINES = ("flux", "htex", "executorlib", "pool")


def _size(size: int) -> str:
    return f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"


def _rows(prefix: str, title: str) -> list[Row]:
    return [
        *(Row(f"{prefix}queued-{n}", f"{title}{n:,} no-op functions", "/s", n, n) for n in QUEUED),
        *(
            Row(f"{prefix}result-{size}", f"{title}results of {_size(size)}", "/s", n, n // 10)
            for size, n in RESULTS.items()
        ),
    ]


_ENGINE_ROWS, _END_TO_END_ROWS = _rows("", "engine: "), _rows("e2e-", "end to end: ")
_ENGINE_KEYS = tuple(row.key for row in _ENGINE_ROWS)
_END_TO_END_KEYS = tuple(row.key for row in _END_TO_END_ROWS)
_FEW, _MANY = QUEUED[0], QUEUED[-1]

SCALING = Level(
    key="scaling",
    title="Scaling",
    rows=[*_ENGINE_ROWS, *_END_TO_END_ROWS],
    contenders={e.key: e.title for e in ENGINES if e.key in _ENGINES} | END_TO_END.contenders,
    stations=[
        *(Station(e.title, _ENGINE_KEYS, e.take_turn) for e in ENGINES if e.key in _ENGINES),
        Station("our endpoint", _END_TO_END_KEYS, our_endpoint),
        Station("official endpoint", _END_TO_END_KEYS, official_endpoint),
    ],
    comparisons=[
        *(
            Comparison(f"queued-{_MANY}", engine, engine, to=f"queued-{_FEW}")
            for engine in _ENGINES
        ),
        *(
            Comparison(f"e2e-queued-{_MANY}", who, who, to=f"e2e-queued-{_FEW}")
            for who in ("ours", "official")
        ),
        *(Comparison(f"queued-{n}", "flux", "htex") for n in QUEUED),
        *(Comparison(f"result-{size}", "flux", "htex") for size in RESULTS),
        *(Comparison(f"result-{size}", "flux", "executorlib") for size in RESULTS),
        *(Comparison(f"e2e-result-{size}", "ours", "official") for size in RESULTS),
    ],
)
