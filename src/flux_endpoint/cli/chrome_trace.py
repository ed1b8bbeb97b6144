"""A run in Chrome's trace event format, for https://ui.perfetto.dev or chrome://tracing.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from flux_endpoint.cli.run_trace import RunTrace
from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.operations import ListedTask

_encode = json.JSONEncoder(separators=(",", ":")).encode


def chrome_trace(trace: RunTrace) -> Iterator[str]:
    """Yield the document in pieces: a process for each node, a thread for each lane.

    Times are in microseconds since the first start; its clock time is in `otherData`.
    """
    first = trace.start
    yield f'{{"displayTimeUnit":"ms","otherData":{_encode({"start": first})},"traceEvents":[\n'
    between = ""
    for event in _events(trace, first):
        yield between + _encode(event)
        between = ",\n"
    yield "\n]}\n"


def _events(trace: RunTrace, first: float) -> Iterator[dict[str, Any]]:
    groups = {name: place for place, name in enumerate(dict.fromkeys(x.group for x in trace.lanes))}
    for name, pid in groups.items():
        yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
        yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}
    for tid, lane in enumerate(trace.lanes):
        where = {"pid": groups[lane.group], "tid": tid}
        yield {"ph": "M", **where, "name": "thread_name", "args": {"name": lane.name}}
        for bar in lane.bars:
            yield {
                "ph": "X",
                **where,
                "name": bar.task.function_name or "job",
                "cat": bar.task.state.value,
                "ts": round((bar.start - first) * 1e6),
                "dur": round((bar.end - bar.start) * 1e6),
                "args": _arguments(bar.task),
            }


def _arguments(task: ListedTask) -> dict[str, Any]:
    arguments = {
        "task": task.task_id,
        "state": task.state.value,
        "queue_time": task.queue_time,
        "job": None if task.jobid is None else format_jobid(task.jobid),
        "node": task.node,
        "worker": task.worker,
        "attempts": task.attempts,
        "returncode": task.returncode,
        "cpu_time": task.cpu_time,
        "max_rss": task.max_rss,
        "error": task.error,
    }
    return {key: value for key, value in arguments.items() if value is not None}
