"""Futures in a notebook and in a terminal."""

from __future__ import annotations

import html.parser
import io
import sys
import threading
import types
from concurrent.futures import Future
from typing import Any

import pytest

from flux_endpoint import ComputeFuture, Executor, ShellResult, progress
from flux_endpoint.errors import TaskExecutionFailed

NASTY = "<script>alert('x')</script>&"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Text(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def shown(value: Any) -> str:
    parser = _Text()
    parser.feed(value._repr_html_())
    assert "script" not in parser.tags
    return "".join(parser.text)


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


def test_a_future_shows_its_task_and_its_end() -> None:
    future = ComputeFuture("task-1", endpoint_id="endpoint-1")
    assert "pending" in shown(future)
    future.set_result(NASTY)
    for each in ("finished", "task-1", "endpoint-1", repr(NASTY)):
        assert each in shown(future)
    failed = ComputeFuture("task-2")
    failed.set_exception(TaskExecutionFailed(f"Traceback\nValueError: {NASTY}"))
    assert f"TaskExecutionFailed: ValueError: {NASTY}" in shown(failed)
    cancelled = ComputeFuture()
    cancelled.cancel()
    assert "cancelled" in shown(cancelled)


def test_a_shell_result_shows_the_ends_of_its_streams() -> None:
    text = shown(ShellResult(f"echo {NASTY}", "\n".join(map(str, range(100))), "", 3, "Error"))
    assert NASTY in text
    assert "99" in text
    assert "50" not in text
    assert "stderr" not in text


def test_an_executor_shows_what_it_uses(service: Any, executor: Executor) -> None:
    text = shown(executor)
    assert str(executor.endpoint_id) in text
    assert "unfinished0" in text


@pytest.mark.parametrize("count", [0, 1, 7])
def test_progress_yields_each_future_once(count: int) -> None:
    futures = [done(n) for n in range(count)]
    stream = Terminal()
    assert set(progress([*futures, *futures], label="runs", file=stream)) == set(futures)
    last = stream.getvalue().rpartition("\r")[2]
    assert f"runs [{'#' * 30}] {count}/{count}" in last
    assert last.endswith("\n")


def test_progress_counts_failures_and_shows_what_is_left() -> None:
    waits: Future[int] = Future()
    stream = Terminal()
    seen = progress([done(ValueError("no")), waits], file=stream)
    next(seen)
    threading.Timer(0.2, waits.set_result, [1]).start()
    assert next(seen) is waits
    assert list(seen) == []
    assert "2/2 1 failed" in stream.getvalue()


def test_progress_writes_nothing_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert [each.result() for each in progress([done(1)])] == [1]
    assert capsys.readouterr() == ("", "")


def test_progress_replaces_its_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = types.SimpleNamespace(update=shown.append)

    def display(text: str, display_id: bool) -> Any:
        shown.append(text)
        return handle

    module = types.SimpleNamespace(
        get_ipython=lambda: types.SimpleNamespace(kernel=True),
        display=types.SimpleNamespace(display=display, HTML=str),
    )
    monkeypatch.setitem(sys.modules, "IPython", module)
    assert len(list(progress([done(n) for n in range(3)], label=NASTY))) == 3
    assert 'value="0" max="3"' in shown[0]
    assert 'value="3" max="3"' in shown[-1]
    assert "<script>" not in "".join(shown)
