"""Output of running tasks on its way to those who follow it."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.engine.results import output_details
from flux_endpoint.engine.tail import StreamTail
from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.operations import BEYOND, OutputAnswer, StreamPart
from flux_endpoint.service import live_output
from flux_endpoint.service.changes import Outcome, ReportedEnd
from flux_endpoint.service.live_output import (
    AGAIN,
    GAP_WAIT,
    MOST_OF_USER,
    Known,
    LiveOutput,
    OutputPart,
)
from flux_endpoint.service.output_follower import OutputFollower, rest_of
from flux_endpoint.service.store.output import TaskOutput


def ended(task_id: str) -> ReportedEnd:
    return ReportedEnd("ada", Outcome.SUCCESS, 0.0, None, None, 0.0, 0, task_id=task_id)


NOTHING = Known(1, (0, 0))


def known(live: LiveOutput, position: int) -> OutputPart | None:
    """Return what is known after a position of standard output, without a wait."""
    return asyncio.run(live.news("t", Known(1, (position, 0)), 0))[1].get("stdout")


def test_what_comes_after_a_gap_waits_for_what_is_between():
    now = 0.0
    live = LiveOutput(lambda: now)
    live.follow("t", "ada")
    live.output_arrived("t", {"stdout": [4, 6, "ef"]})
    assert known(live, 0) is None
    live.output_arrived("t", {"stdout": [0, 2, "ab"]})
    assert known(live, 0) == OutputPart(0, 2, "ab")
    now = GAP_WAIT
    assert known(live, 0) == OutputPart(0, 2, "ab")
    assert known(live, 2) == OutputPart(4, 6, "ef")
    live.output_arrived("t", {"stdout": [2, 4, "cd"]})  # too late
    assert known(live, 2) == OutputPart(4, 6, "ef")

    async def waits() -> dict[str, OutputPart]:
        return (await asyncio.wait_for(live.news("u", NOTHING, 600), 60))[1]

    live = LiveOutput()
    live.follow("u", "ada")
    live.output_arrived("u", {"stdout": [4, 6, "ef"]})
    assert asyncio.run(waits()) == {"stdout": OutputPart(4, 6, "ef")}


@pytest.mark.parametrize(
    ("parts", "position", "expected"),
    [
        ([(0, 2, "ab"), (2, 4, "cd")], 0, OutputPart(0, 4, "abcd")),
        ([(0, 2, "ab"), (2, 4, "cd")], 3, OutputPart(3, 4, "d")),
        ([(0, 2, "ab"), (0, 4, "abcd")], 0, OutputPart(0, 4, "abcd")),  # sent again
        ([(0, 4, "abcd"), (0, 2, "ab")], 4, None),
        ([(0, 2, "ab"), (8, 9, "x")], 0, OutputPart(0, 2, "ab")),  # a gap
        ([(0, 2, "ab"), (4, 5, "e"), (3, 4, "d"), (2, 3, "c")], 0, OutputPart(0, 5, "abcde")),
        ([(0, 5, "12345"), (5, 7, "\\xff")], 6, OutputPart(5, 7, "\\xff")),  # can't be divided
        ([(3, 1, "x"), "no part", (0, 1, None)], 0, None),
    ],
)
def test_parts_are_put_together(parts, position, expected):
    live = LiveOutput()
    live.follow("t", "ada")
    for part in parts:
        live.output_arrived("t", {"stdout": part if isinstance(part, str) else list(part)})
    assert known(live, position) == expected


def test_parts_without_text_take_no_memory_without_end():
    live = LiveOutput()
    live.follow("t", "ada")
    for position in range(10_000):
        live.output_arrived("t", {"stdout": [position, position + 1, ""]})
    assert len(live._tasks["t"].attempts[1]["stdout"]._parts) <= 4096
    assert known(live, 0) == OutputPart(10_000 - 4096, 10_000, "")


@pytest.mark.parametrize("letter", ["x", "ä", "€", "😀", "\\xff"])
def test_all_that_is_followed_takes_limited_memory(letter, monkeypatch):
    most, size = 1 << 20, 1 << 16
    monkeypatch.setattr(live_output, "_MOST_OF_ALL", most)
    monkeypatch.setattr(live_output, "_MOST_KEPT", size)
    live = LiveOutput()
    text = letter * (size // len(letter))
    end = size if letter == "\\xff" else len(text.encode())
    for number in range(100):
        live.follow(str(number), str(number))
        live.output_arrived(str(number), {"stdout": [0, end, text], "stderr": [0, end, text]})
    for task in live._tasks.values():
        for stream in task.all_streams():
            assert stream.end == end
    parts = [p for t in live._tasks.values() for s in t.all_streams() for p in s._parts]
    assert sum(sys.getsizeof(part.text) for part in parts) <= most
    last = live.known("0", NOTHING)[1]["stdout"]
    assert last.end == end
    assert text.endswith(last.text)
    assert last.begin == end - len(last.text.encode()) or not last.text


def test_what_comes_after_a_gap_waits_also_if_as_much_as_can_be_is_kept(monkeypatch):
    most = 1 << 14
    monkeypatch.setattr(live_output, "_MOST_KEPT", most)
    live = LiveOutput(lambda: 0.0)
    live.follow("t", "ada")
    for at in range(0, 3 * most, 100):
        live.output_arrived("t", {"stdout": [at, at + 100, "x" * 100]})
    end = at + 100
    live.output_arrived("t", {"stdout": [end + 1, end + 2, "b"]})
    assert known(live, end) is None
    live.output_arrived("t", {"stdout": [end, end + 1, "a"]})
    assert known(live, end) == OutputPart(end, end + 2, "ab")
    for at in range(end + 3, end + 3 * most, 100):  # they can't all wait
        live.output_arrived("t", {"stdout": [at, at + 100, "y" * 100]})
    stream = live._tasks["t"].attempts[1]["stdout"]
    parts = [*stream._parts, *stream._early]
    assert sum(max(sys.getsizeof(part.text), 256) for part in parts) <= most
    assert stream.end >= at - most // 2


def test_output_and_an_end_wake_those_who_wait():
    live = LiveOutput()
    live.follow("t", "ada")

    async def waits(position: int, wake) -> dict[str, OutputPart]:
        news = asyncio.create_task(live.news("t", Known(1, (position, 0)), 600))
        await asyncio.sleep(0)  # it waits
        threading.Thread(target=wake).start()
        return (await asyncio.wait_for(news, 60))[1]

    arrives = lambda: live.output_arrived("t", {"stdout": [0, 1, "x"]})  # noqa: E731
    assert asyncio.run(waits(0, arrives)) == {"stdout": OutputPart(0, 1, "x")}
    assert asyncio.run(waits(1, lambda: live.tasks_ended([ended("t")]))) == {}
    live.follow("u", "ada")
    live.close()
    assert asyncio.run(live.news("u", NOTHING, 600)) == (1, {})


def test_an_endpoint_is_asked_now_and_then_and_followers_are_limited(monkeypatch):
    now = 0.0
    live = LiveOutput(lambda: now)
    assert live.follow("t", "ada") == (True, NOTHING)
    live.output_arrived("t", {"stderr": [0, 3, "abc"]})
    assert live.follow("t", "ada") == (False, Known(1, (0, 3)))
    now = AGAIN
    assert live.follow("t", "ada") == (True, Known(1, (0, 3)))
    for number in range(1, MOST_OF_USER):
        live.follow(str(number), "ada")
    with pytest.raises(ServiceError, match="is followed, which is the limit") as refused:
        live.follow("another", "ada")
    assert refused.value.http_status == 429
    live.follow("another", "bob")
    live.tasks_ended([ended("1")])  # one that has ended does not count
    live.follow("another one", "ada")
    live.output_arrived("1", {"stdout": [0, 1, "x"]})
    live.follow("t", "ada")
    assert live.known("1", NOTHING)[1]  # a follower may come back for what it lacks of it
    monkeypatch.setattr(live_output, "MOST_FOLLOWED", len(live._tasks))
    live.follow("of carl", "carl")  # there is room only without it
    assert not live.known("1", NOTHING)[1]
    now = 1000.0
    live.follow("another", "ada")  # the others were forgotten
    assert known(live, 0) is None


def test_the_last_attempt_is_not_cut_where_an_earlier_one_ended():
    output = TaskOutput("one\ntwo\n", "late\n", stderr_dropped=3)
    once = rest_of(output, Known(1, (4, BEYOND)).positions_in(1))
    assert once == {"stdout": OutputPart(4, 8, "two\n")}
    again = rest_of(output, Known(1, (4, BEYOND)).positions_in(2))
    assert again == {"stdout": OutputPart(0, 8, "one\ntwo\n")}
    assert rest_of(output, Known(1, (99, 5)).positions_in(2))["stderr"] == OutputPart(
        3, 8, "late\n"
    )
    assert rest_of(TaskOutput("", ""), (0, 0)) == {}


def test_a_further_attempt_begins_anew():
    live = LiveOutput()
    live.follow("t", "ada")

    def news(attempt: int, position: int, **options: bool) -> tuple[int, dict[str, OutputPart]]:
        known = Known(attempt, (position, BEYOND))
        return asyncio.run(live.news("t", known, 0, **options))

    live.output_arrived("t", {"stdout": [0, 9, "the first"]})
    live.output_arrived("t", {"attempt": 2, "stdout": [0, 3, "the"], "stderr": [0, 1, "x"]})
    live.output_arrived("t", {"stdout": [9, 10, "!"]})  # late
    live.output_arrived("t", {"attempt": 4, "stdout": [0, 1, "4"]})
    live.output_arrived("t", {"attempt": "3", "stdout": [9, 10, "no number"]})
    assert news(1, 9) == (1, {"stdout": OutputPart(9, 10, "!")})
    assert news(1, 10) == (2, {"stdout": OutputPart(0, 3, "the")})
    assert news(2, 3) == (4, {"stdout": OutputPart(0, 1, "4")})
    assert news(2, 1) == (2, {"stdout": OutputPart(1, 3, "he")})
    assert news(1, 10, knows_attempts=False) == (1, {})
    assert news(5, 0) == (5, {})  # its follower had more from another service
    assert live.follow("t", "ada") == (False, Known(4, (1, 0)))
    live.output_arrived("t", {"attempt": 5, "stdout": [0, 1, "5"]})
    assert news(1, 0) == (2, {"stdout": OutputPart(0, 3, "the")})  # not all attempts are kept


@given(st.lists(st.text(max_size=9), max_size=20), st.integers(4, 40), st.integers(0, 200))
def test_parts_of_a_stream_never_end_within_a_character(pieces, most, position):
    tail = StreamTail(most)
    data = "".join(pieces).encode(errors="replace")
    for at in range(0, len(data), 3):
        tail.add(data[at : at + 3])
        begin, end, text = tail.part(position)
        assert begin >= tail.dropped
        assert end - begin <= len(tail.data)
    begin, end, text = tail.part(0)
    assert data[begin:end].decode() == text
    assert end == len(data)


def test_what_came_live_precedes_the_end_that_lacks_it():
    live = LiveOutput()
    live.follow("t", "ada")
    live.output_arrived("t", {"stdout": [0, 8, "one\ntwo\n"]})
    follower = OutputFollower(None, live, None, "t", Known(1, (4, BEYOND)))  # it asks nobody here
    cut = OutputAnswer(ended=True, stdout=StreamPart(begin=12, end=16, text="end\n"))
    assert follower._without_gap(cut) == OutputAnswer(
        ended=False, stdout=StreamPart(begin=4, end=8, text="two\n")
    )
    follower.known = Known(1, (8, BEYOND))
    assert follower._without_gap(cut) is cut
    whole = OutputAnswer(ended=True, stdout=StreamPart(begin=4, end=16, text="two\n...\nend\n"))
    follower.known = Known(1, (4, BEYOND))
    assert follower._without_gap(whole) is whole
    later = whole.model_copy(update={"attempt": 2})
    assert follower._without_gap(later) == OutputAnswer(
        ended=False, stdout=StreamPart(begin=4, end=8, text="two\n")
    )
    follower.known = Known(1, (8, BEYOND))
    assert follower._without_gap(later) is later


@given(
    st.binary(max_size=30)
    | st.lists(st.sampled_from([b"\xff", b"a", "ä".encode(), b"\n"])).map(b"".join),
    st.integers(4, 40),
    st.integers(0, 40),
)
def test_the_end_continues_what_came_live_also_where_bytes_are_not_utf8(data, most, position):
    reported = StreamTail(1000)
    reported.add(data[:position])
    _, position, _ = reported.part(0)  # what a follower has
    kept = StreamTail(most)
    kept.add(data)
    details = output_details([kept, StreamTail(most)])
    output, rest = TaskOutput.split(details)
    parts = rest_of(output or TaskOutput("", ""), (position, BEYOND), rest)
    part = parts.get("stdout", OutputPart(position, len(data), ""))
    assert part.end == len(data)
    assert part.begin == max(position, kept.dropped)
    assert part.text == data[part.begin :].decode(errors="backslashreplace")
