"""A run as one HTML page, or one SVG file, that needs nothing from elsewhere. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape

from flux_endpoint.cli.gantt import STYLE, Gantt, name_of
from flux_endpoint.cli.run_trace import JOBS, UNKNOWN_NODE, Bar, RunTrace
from flux_endpoint.cli.table import shown_bytes, shown_duration, shown_moment
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.operations import ListedState

#: The most functions, failures and longest tasks that the page lists.
_MOST_FUNCTIONS, _MOST_LISTED = 30, 20

_PAGE_STYLE = """
:root{color-scheme:light dark}
body{margin:1.5rem auto;max-width:1240px;padding:0 1rem;font:15px/1.45 system-ui,sans-serif;
background:#fff;color:#1b1f24}
@media (prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}}
h1{font-size:1.35rem;margin:0}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}
.facts{display:flex;flex-wrap:wrap;gap:.4rem 2.2rem;margin:1rem 0}
.facts div{display:flex;flex-direction:column-reverse}.facts dd{margin:0;font-size:1.2rem}
.facts dt,.note{opacity:.7;font-size:.85rem}
.wide{overflow-x:auto}svg{max-width:100%;min-width:760px;height:auto}
table{border-collapse:collapse}th,td{padding:.15rem .8rem .15rem 0;text-align:left;
border-bottom:1px solid #8884;vertical-align:top}td.n,th.n{text-align:right}
td{font-variant-numeric:tabular-nums}code{font-size:.85em}
"""


def svg_file(trace: RunTrace, title: str) -> str:
    """Return a chart as an SVG file."""
    return Gantt(trace).svg(title).replace("@STYLE@", f"<style>{STYLE}</style>", 1) + "\n"


def html_page(trace: RunTrace, title: str, notes: Sequence[str]) -> str:
    """Return a page with the chart, figures and tables.

    Args:
        trace: the run, with at least one bar.
        title: its title.
        notes: what is left out, as sentences.
    """
    chart = Gantt(trace).svg(title).replace("@STYLE@", "", 1)
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in _facts(trace)
    )
    shown = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_PAGE_STYLE}{STYLE}</style></head><body>\n"
        f'<h1>{escape(title)}</h1><dl class="facts">{facts}</dl>{shown}\n'
        f'<div class="wide">{chart}</div>\n'
        '<p class="note">Point at a bar to read what it is. Times on the axis count from the first '
        f"start, {escape(shown_moment(trace.start))}.</p>\n"
        + "\n".join([*_functions(trace), *_longest(trace), *_failures(trace)])
        + "\n</body></html>\n"
    )


def _facts(trace: RunTrace) -> Iterator[tuple[str, str]]:
    bars = list(trace.bars)
    span = trace.end - trace.start
    failed = sum(bar.task.state is ListedState.FAILED for bar in bars)
    yield "tasks", f"{len(bars):,}"
    yield "failed", f"{failed:,}"
    yield "first start to last end", shown_duration(span)
    of_workers = [lane for lane in trace.lanes if lane.group not in {JOBS, UNKNOWN_NODE}]
    if of_workers and span > 0:
        busy = sum(bar.end - bar.start for lane in of_workers for bar in lane.bars)
        yield "workers", f"{len(of_workers):,}"
        yield "of their time with tasks", f"{100 * busy / (span * len(of_workers)):.0f} %"
    waits = [bar.task.queue_time for bar in bars if bar.task.queue_time is not None]
    if waits:
        yield "median wait", shown_duration(statistics.median(waits))
        yield "longest wait", shown_duration(max(waits))
    times = [bar.task.cpu_time for bar in bars if bar.task.cpu_time is not None]
    if times:
        yield "CPU time", shown_duration(sum(times))
    peaks = [bar.task.max_rss for bar in bars if bar.task.max_rss is not None]
    if peaks:
        yield "highest memory of a task", shown_bytes(max(peaks))


def _functions(trace: RunTrace) -> Iterator[str]:
    by_name: dict[str, list[Bar]] = defaultdict(list)
    for bar in trace.bars:
        by_name[name_of(bar)].append(bar)
    ordered = sorted(by_name.items(), key=lambda each: -sum(bar.end - bar.start for bar in each[1]))
    rows = []
    for name, bars in ordered[:_MOST_FUNCTIONS]:
        seconds = [bar.end - bar.start for bar in bars]
        failed = sum(bar.task.state is ListedState.FAILED for bar in bars)
        peaks = [bar.task.max_rss for bar in bars if bar.task.max_rss is not None]
        times = [bar.task.cpu_time for bar in bars if bar.task.cpu_time is not None]
        rows.append(
            [
                name,
                f"{len(bars):,}",
                f"{failed:,}",
                shown_duration(sum(seconds)),
                shown_duration(statistics.median(seconds)),
                shown_duration(max(seconds)),
                shown_duration(sum(times)) if times else "-",
                shown_bytes(max(peaks)) if peaks else "-",
            ]
        )
    yield "<h2>Functions</h2>"
    titles = ["function", "tasks", "failed", "in all", "median", "longest", "CPU time", "memory"]
    yield _table(titles, rows, numbers=range(1, 8))
    if len(ordered) > len(rows):
        yield f'<p class="note">{len(ordered) - len(rows)} more functions are not listed.</p>'


def _longest(trace: RunTrace) -> Iterator[str]:
    bars = sorted(trace.bars, key=lambda bar: bar.start - bar.end)[:_MOST_LISTED]
    rows = [
        [
            bar.task.task_id,
            name_of(bar),
            bar.task.state.value,
            shown_duration(bar.end - bar.start),
            _where(bar),
        ]
        for bar in bars
    ]
    yield "<h2>Longest tasks</h2>"
    yield _table(["task", "function", "state", "ran", "where"], rows, numbers=(3,))


def _failures(trace: RunTrace) -> Iterator[str]:
    failed = [bar for bar in trace.bars if bar.task.state is ListedState.FAILED]
    if not failed:
        return
    failed.sort(key=lambda bar: bar.start)
    rows = [
        [bar.task.task_id, name_of(bar), _where(bar), bar.task.error or ""]
        for bar in failed[:_MOST_LISTED]
    ]
    yield "<h2>Failures</h2>"
    yield _table(["task", "function", "where", "error"], rows)
    if len(failed) > len(rows):
        yield f'<p class="note">{len(failed) - len(rows)} more failures are not listed.</p>'


def _where(bar: Bar) -> str:
    task = bar.task
    parts = [format_jobid(task.jobid)] if task.jobid is not None else []
    parts += [task.node] if task.node else []
    parts += [f"worker {task.worker}"] if task.worker is not None else []
    return ", ".join(parts) or "-"


def _table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()
) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        shown = (
            f"<{tag}{' class=n' if place in numbers else ''}>{escape(cell)}</{tag}>"
            for place, cell in enumerate(cells)
        )
        return f"<tr>{''.join(shown)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>{line("th", titles)}{body}</table></div>'
