"""A run as a chart and as a trace: complete, bounded, and without markup of others."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest

from flux_endpoint.cli.chrome_trace import chrome_trace
from flux_endpoint.cli.gantt import MOST_LANES
from flux_endpoint.cli.run_trace import JOBS, UNKNOWN_NODE, trace_of
from flux_endpoint.cli.trace_page import html_page, svg_file
from flux_endpoint.protocol.operations import ListedTask

SVG = "{http://www.w3.org/2000/svg}"


def task(number, start=None, end=None, **fields):
    told = {
        "task_id": f"{number:036d}",
        "task_group_id": "g",
        "endpoint_id": "e",
        "function_id": "f",
        "function_name": "work",
        "state": "success",
        "submitted": 1000.0,
        "started": start,
        "stopped": end,
        **fields,
    }
    return ListedTask(**told)


def on(node, worker):
    return {"node": node, "worker": worker}


def marks(svg):
    """The text of each rectangle that stands for tasks."""
    titles = ET.fromstring(svg).iterfind(f".//{SVG}rect/{SVG}title")
    return [title.text for title in titles]


def test_each_worker_has_a_lane_below_its_node():
    tasks = [task(1, 5, 6, **on("b", 2)), task(2, 1, 2, **on("a", 9)), task(3, 3, 4, **on("a", 9))]
    run = trace_of(tasks, 10)
    assert [(lane.group, lane.name) for lane in run.lanes] == [
        ("a", "worker 9"),
        ("b", "worker 2"),
    ]
    assert [bar.task.task_id for bar in run.lanes[0].bars] == [tasks[1].task_id, tasks[2].task_id]
    assert (run.start, run.end) == (1, 6)


def test_jobs_and_tasks_without_a_node_share_lanes_if_they_do_not_overlap():
    jobs = [task(n, start, start + 2, jobid=n) for n, start in enumerate((1, 2, 3, 4))]
    official = [task(9, 1, 2), task(10, 2, 3)]
    run = trace_of(jobs + official, 10)
    lanes = [(lane.group, len(lane.bars)) for lane in run.lanes]
    assert lanes == [(JOBS, 2), (JOBS, 2), (UNKNOWN_NODE, 2)]


def test_tasks_without_times_are_counted_and_running_ones_end_now():
    running = task(1, 5, state="running")
    waiting = task(2, state="pending")
    silent = task(3, state="failed", error="lost")
    run = trace_of([running, waiting, silent], 8)
    (bar,) = run.bars
    assert (bar.start, bar.end) == (5, 8)
    assert sum(run.left_out.values()) == 2
    assert len(run.left_out) == 2


def test_a_chrome_trace_has_processes_threads_and_microseconds():
    tasks = [task(1, 100.5, 101.25, **on("a", 7)), task(2, 100, 103, jobid=5, state="failed")]
    document = json.loads("".join(chrome_trace(trace_of(tasks, 200))))
    events = document["traceEvents"]
    names = {e["args"]["name"] for e in events if e["ph"] == "M" and "name" in e["args"]}
    assert names == {"a", JOBS, "worker 7", "1"}
    bars = {e["args"]["task"]: e for e in events if e["ph"] == "X"}
    first = bars[tasks[0].task_id]
    assert (first["ts"], first["dur"], first["name"]) == (500_000, 750_000, "work")
    assert bars[tasks[1].task_id]["args"]["job"] == "ƒ6"
    assert document["otherData"]["start"] == 100


@pytest.mark.parametrize("text", ["</script><b>&", "]]>\"' onload=x", "ƒ \u202e"])
def test_names_and_errors_are_text_and_never_markup(text):
    tasks = [
        task(n, n, n + 1, function_name=text, error=text, state="failed", **on(text, 1))
        for n in range(3)
    ]
    run = trace_of(tasks, 10)
    assert all(text in mark for mark in marks(svg_file(run, text)))
    page = html_page(run, text, [text])
    assert "<b>" not in page
    assert "<script" not in page
    for attribute in ("src=", "href=", "url(", "@import"):
        assert attribute not in page


def test_a_chart_shows_each_task_that_is_wide_enough_and_counts_the_others():
    tasks = [task(n, n * 10.0, n * 10.0 + 9, **on("a", 1)) for n in range(50)]
    assert len(marks(svg_file(trace_of(tasks, 1e4), "x"))) == 50
    many = [task(n, n * 0.01, n * 0.01 + 0.009, **on("a", 1)) for n in range(50_000)]
    shown = marks(svg_file(trace_of(many, 1e4), "x"))
    assert len(shown) < 1100
    assert sum(int(mark.split()[0]) for mark in shown if "tasks" in mark) > 49_000


def test_a_failure_among_many_tasks_is_seen():
    tasks = [task(n, n * 0.01, n * 0.01 + 0.009, **on("a", 1)) for n in range(10_000)]
    tasks[5_000] = task(5_000, 50, 50.009, state="failed", error="why", **on("a", 1))
    svg = svg_file(trace_of(tasks, 1e4), "x")
    (seen,) = ET.fromstring(svg).iterfind(f".//{SVG}rect[@class='failed']/{SVG}title")
    assert "1 failed" in seen.text
    assert "why" in seen.text


def test_a_chart_of_very_many_tasks_and_workers_is_bounded():
    tasks = [
        task(n, n // 100 + (n % 7) / 10, n // 100 + 0.9, **on(f"n{n % 500}", n % 1000))
        for n in range(20_000)
    ]
    run = trace_of(tasks, 1e4)
    page = html_page(run, "x", [])
    assert len(run.lanes) == 1000 > MOST_LANES
    assert page.count("<rect ") < 50 * MOST_LANES


def test_a_run_of_no_length_is_drawn():
    assert len(marks(svg_file(trace_of([task(1, 5, 5, **on("a", 1))], 9), "x"))) == 1
