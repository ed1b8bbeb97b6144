"""A run as a Gantt chart in SVG: lanes over time. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from flux_endpoint.cli.run_trace import Bar, Lane, RunTrace
from flux_endpoint.cli.table import shortened, shown_bytes, shown_duration
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.operations import ListedState

#: Width of the chart, of the names beside it, and of the bars' part, in pixels.
_WIDTH, _NAMES, _RIGHT = 1200, 200, 20
_ROOM = _WIDTH - _NAMES - _RIGHT
#: Height of the curve of running tasks, and of a line of text.
_CURVE, _LINE = 70, 20
#: Height of a lane by the number of lanes.
_HEIGHTS = ((40, 18), (120, 11), (10_000, 6))
#: The most lanes, and about the most rectangles, of a chart.
MOST_LANES = 400
_MOST_RECTANGLES = 40_000
#: The most functions that have a colour of their own; the others share one.
_COLOURS = 7
#: The most characters of a name beside the chart, of a function and of an error.
_LONGEST_NAME, _LONGEST_FUNCTION, _LONGEST_ERROR = 26, 40, 200

#: Colours that people with colour blindness can tell apart; failures have a colour of their own.
STYLE = """
.chart{--bg:#fff;--ink:#1b1f24;--soft:#656d76;--line:#d8dee4;--bad:#c1121f;--curve:#9db8d6;
--f0:#0072b2;--f1:#e69f00;--f2:#009e73;--f3:#a75a9b;--f4:#56b4e9;--f5:#8a6d3b;--f6:#7a8b00;--f7:#8c959f}
@media (prefers-color-scheme:dark){.chart{--bg:#0d1117;--ink:#e6edf3;--soft:#9198a1;--line:#30363d;
--bad:#ff5a5f;--curve:#2f4f73;--f0:#4c9be8;--f1:#f0b232;--f2:#2fbf8f;--f3:#d08bc6;--f4:#8fd3ff;
--f5:#c6a15b;--f6:#b5c24a;--f7:#768390}}
.chart text{fill:var(--ink);font:12px system-ui,sans-serif}.chart .soft{fill:var(--soft)}
.chart .end{text-anchor:end}.chart .mid{text-anchor:middle}.chart .group{font-weight:600}
.chart .line{stroke:var(--line);fill:none}.chart .curve{fill:var(--curve)}.chart .bg{fill:var(--bg)}
.chart .failed{fill:var(--bad)}.chart .cancelled{fill:none;stroke:var(--bad)}
.chart .running{opacity:.55}
""" + "".join(f".chart .f{n}{{fill:var(--f{n})}}" for n in range(_COLOURS + 1))


@dataclass(slots=True)
class _Mark:
    """A rectangle: one bar, or several that are too close to tell apart."""

    x: float
    right: float
    bar: Bar
    count: int
    seconds: float
    failed: int


class Gantt:
    """The chart of a run.

    Args:
        trace: the run, with at least one bar.
    """

    def __init__(self, trace: RunTrace) -> None:
        self._trace = trace
        self._lanes = trace.lanes[:MOST_LANES]
        self._start = trace.start
        self._span = max(trace.end - trace.start, 1e-6)
        self._height = next(h for most, h in _HEIGHTS if len(self._lanes) <= most)
        self._step = max(1.0, len(self._lanes) * _ROOM / _MOST_RECTANGLES)
        counts = Counter(name_of(bar) for bar in trace.bars)
        self._functions = {name: n for n, (name, _) in enumerate(counts.most_common(_COLOURS))}
        self._others = len(counts) - len(self._functions)

    def svg(self, title: str) -> str:
        """Return the chart as an SVG element, without a style; `STYLE` has that."""
        parts = [*self._legend()]
        top = 2 * _LINE + _CURVE
        parts += self._curve(_LINE + 6)
        below = [*self._rows(top + _LINE)]
        height = self._bottom + 2 * _LINE
        parts += self._axis(top, self._bottom)
        return (
            f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" role="img" '
            f'viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}">'
            f"<title>{escape(title)}</title>@STYLE@"
            f'<rect class="bg" width="{_WIDTH}" height="{height:.0f}"/>'
            + "\n".join([*parts, *below])
            + "</svg>"
        )

    def _x(self, moment: float) -> float:
        return _NAMES + (moment - self._start) / self._span * _ROOM

    def _legend(self) -> Iterator[str]:
        x = float(_NAMES)
        names = [(f"f{n}", name) for name, n in self._functions.items()]
        if self._others:
            names.append((f"f{_COLOURS}", f"{self._others} other functions"))
        names.append(("failed", "failed"))
        for kind, name in names:
            shown = shortened(name, _LONGEST_FUNCTION)
            if x + 7 * len(shown) > _WIDTH:
                yield _text(x, 14, "…")
                return
            yield f'<rect class="{kind}" x="{x:.0f}" y="4" width="11" height="11" rx="2"/>'
            yield _text(x + 16, 14, shown)
            x += 34 + 7 * len(shown)

    def _curve(self, y: float) -> Iterator[str]:
        """Yield the number of running tasks over time: its mean in each pixel."""
        busy = [0.0] * (_ROOM + 1)
        for bar in self._trace.bars:
            _add(busy, self._x(bar.start) - _NAMES, self._x(bar.end) - _NAMES)
        most = max(busy)
        if not most:
            return
        bottom = y + _CURVE
        points = " ".join(
            f"{_NAMES + x},{bottom - value / most * (_CURVE - 12):.1f}"
            for x, value in enumerate(busy)
        )
        corners = f"{_NAMES},{bottom} {points} {_WIDTH - _RIGHT},{bottom}"
        yield f'<polygon class="curve" points="{corners}"/>'
        yield _text(_NAMES - 8, bottom - _CURVE + 20, f"{most:.3g}", "end soft")
        yield _text(_NAMES - 8, bottom, "0", "end soft")
        yield _text(8, bottom - _CURVE / 2 + 8, "tasks at a time", "soft")

    def _axis(self, top: float, bottom: float) -> Iterator[str]:
        step = _tick(self._span)
        for n in itertools.count():
            if n * step > self._span:
                return
            x = self._x(self._start + n * step)
            yield f'<path class="line" d="M{x:.1f} {top:.0f}V{bottom:.0f}"/>'
            yield _text(x, bottom + 16, _shown_tick(n * step), "mid soft")

    def _rows(self, y: float) -> Iterator[str]:
        group = ""
        for lane in self._lanes:
            if lane.group != group:
                group = lane.group
                count = sum(each.group == group for each in self._lanes)
                y += 6
                yield _text(8, y + 12, f"{shortened(group, _LONGEST_NAME)} ({count})", "group")
                y += _LINE - 2
            if self._height >= 10:
                yield _text(_NAMES - 8, y + self._height - 3, lane.name, "end soft")
            yield from self._bars(lane, y)
            y += self._height
        self._bottom = y + 4

    def _bars(self, lane: Lane, y: float) -> Iterator[str]:
        height = self._height - (2 if self._height > 8 else 1)
        for mark in self._marks(lane):
            width = max(mark.right - mark.x, 0.6)
            kind = self._kind(mark)
            yield (
                f'<rect class="{kind}" x="{mark.x:.1f}" y="{y:.0f}" width="{width:.1f}" '
                f'height="{height}"><title>{escape(self._tooltip(mark))}</title></rect>'
            )

    def _marks(self, lane: Lane) -> Iterator[_Mark]:
        last: _Mark | None = None
        for bar in lane.bars:
            x, right = self._x(bar.start), self._x(bar.end)
            failed = int(bar.task.state is ListedState.FAILED)
            is_near = last is not None and right - last.x < self._step
            if last is not None and is_near:
                last.right = max(last.right, right)
                last.count += 1
                last.seconds += bar.end - bar.start
                last.failed += failed
                if failed:
                    last.bar = bar
                continue
            if last is not None:
                yield last
            last = _Mark(x, right, bar, 1, bar.end - bar.start, failed)
        if last is not None:
            yield last

    def _kind(self, mark: _Mark) -> str:
        if mark.failed:
            return "failed"
        colour = f"f{self._functions.get(name_of(mark.bar), _COLOURS)}"
        state = mark.bar.task.state
        return f"{colour} {state.value}" if state is not ListedState.SUCCESS else colour

    def _tooltip(self, mark: _Mark) -> str:
        if mark.count > 1:
            failed = f", {mark.failed} failed" if mark.failed else ""
            return (
                f"{mark.count} tasks{failed}, {shown_duration(mark.seconds)} in all; one of them:\n"
                + _tooltip(mark.bar, self._start)
            )
        return _tooltip(mark.bar, self._start)


def name_of(bar: Bar) -> str:
    """Return the name of a bar's function for people."""
    return bar.task.function_name or "(follows a job)"


def _tooltip(bar: Bar, start: float) -> str:
    task = bar.task
    where = [format_jobid(task.jobid)] if task.jobid is not None else []
    where += [task.node] if task.node else []
    where += [f"worker {task.worker}"] if task.worker is not None else []
    used = [] if task.cpu_time is None else [f"CPU {shown_duration(task.cpu_time)}"]
    used += [] if task.max_rss is None else [shown_bytes(task.max_rss)]
    waited = "" if task.queue_time is None else f", waited {shown_duration(task.queue_time)}"
    ran = f"ran {shown_duration(bar.end - bar.start)} from +{shown_duration(bar.start - start)}"
    lines = [
        f"{name_of(bar)}: {task.state.value}",
        ran + waited,
        ", ".join(where),
        ", ".join(used),
        shortened(task.error or "", _LONGEST_ERROR),
        task.task_id,
    ]
    return "\n".join(line for line in lines if line)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _add(busy: list[float], left: float, right: float) -> None:
    """Add a bar to the number of running tasks in each pixel that it covers, by its share."""
    first, last = int(left), min(int(right), len(busy) - 1)
    if first >= last:
        busy[min(first, last)] += right - left
        return
    busy[first] += first + 1 - left
    busy[last] += right - last
    for x in range(first + 1, last):
        busy[x] += 1


_TICKS: Sequence[float] = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)


def _tick(span: float) -> float:
    """Return the distance of the axis's labels, in seconds: about ten of them, at round times."""
    wanted = span / 10
    if wanted > _TICKS[-1]:
        return 86400.0 * max(1, round(wanted / 86400)) if wanted > 43200 else 43200.0
    if wanted >= 1:
        return next(tick for tick in _TICKS if tick >= wanted)
    step = 1.0
    while step / 10 >= wanted:
        step /= 10
    return next((step / by for by in (5, 2) if step / by >= wanted), step)


def _shown_tick(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.4g}{unit}"
    return f"{seconds:.4g}s"
