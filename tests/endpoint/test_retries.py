"""Tasks with several attempts: which failures lead to another one, and that each task ends once."""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from flux_endpoint.endpoint import followed_output, intake, retries
from flux_endpoint.endpoint.attempt_ends import AttemptEnd, cancelled_result, final_result, read_end
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.followed_output import FollowedOutput
from flux_endpoint.endpoint.inbox import Turn
from flux_endpoint.endpoint.intake import TasksInFlight
from flux_endpoint.endpoint.journal import Journal
from flux_endpoint.engine import results
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.engine.tail import StreamTail
from flux_endpoint.engine.task import Failure, Value
from flux_endpoint.protocol.envelope import ATTEMPTS, FAILED_ATTEMPTS
from flux_endpoint.protocol.messages import OutputWanted, Result, TaskKill, unpack
from flux_endpoint.protocol.run_options import RunOptions
from flux_endpoint.protocol.states import ErrorCode

TASK = "4b116d3c-1703-4f8f-9f6f-39921e5864df"
RAISED = Failure(
    ErrorCode.REMOTE_EXECUTION,
    "Traceback…\nmine.Flaky: no luck\n",
    raised="mine.Flaky OSError Exception BaseException",
)
LOST = Failure(ErrorCode.WORKER_LOST, "WorkerLost: the worker was killed by SIGKILL")
REFUSED = Failure(ErrorCode.COULD_NOT_EXECUTE, "the function can't be deserialized")
CANCELLED = Failure(ErrorCode.CANCELLED, "TaskCancelled: the task was ended on request")


def body_of(end: Value | Failure, engine_id: str = TASK) -> bytes:
    return results.body_of(engine_id, end, {"os": "any"}, [])


def message(result: EngineResult) -> Result:
    found = unpack(result.body)
    assert isinstance(found, Result)
    assert str(found.task_id) == result.task_id
    return found


@pytest.mark.parametrize(
    ("end", "conditions", "expected"),
    [
        (RAISED, (), True),
        (RAISED, ("mine.Flaky",), True),
        (RAISED, ("Flaky",), True),
        (RAISED, ("OSError",), True),  # a base class
        (RAISED, ("other.Flaky",), False),
        (RAISED, ("ValueError", "lost", 1), False),
        (LOST, (), True),
        (LOST, ("lost",), True),
        (LOST, ("OSError", 1), False),
        (Value("v", 75), (), True),
        (Value("v", 75), (1, 75), True),
        (Value("v", 75), (1, "lost"), False),
        (Value("v", -9), (-9,), True),
        (Value("v", 0), (), False),
        (Value("v"), (), False),
        (REFUSED, (), False),
        (CANCELLED, (), False),
    ],
)
def test_which_ends_lead_to_another_attempt(end, conditions, expected) -> None:
    assert read_end(body_of(end)).matches(conditions) is expected


def test_an_end_that_cannot_be_read_is_the_last_one() -> None:
    for body in (b"", b"\x01{", b'\x01{"data": {"error_details": {}}}', b"\x01[]"):
        assert read_end(body) == AttemptEnd()
        end = message(final_result(TASK, body, ["one"]))
        assert "attempt 1: one" in end.data
        assert end.error_details is not None


def test_the_error_has_the_reason_of_each_attempt() -> None:
    end = message(final_result(TASK, body_of(RAISED, f"{TASK}.3"), ["OSError: full", "exit"]))
    assert end.data == (
        "3 attempts failed\n  attempt 1: OSError: full\n  attempt 2: exit\n"
        "  attempt 3:\nTraceback…\nmine.Flaky: no luck\n"
    )
    assert end.details is not None
    assert end.details[ATTEMPTS] == 3
    assert json.loads(end.details[FAILED_ATTEMPTS]) == ["OSError: full", "exit"]
    assert end.details["os"] == "any"


def test_the_code_of_a_loss_or_a_cancellation_stays_at_the_beginning() -> None:
    lost = message(final_result(TASK, body_of(LOST), ["ValueError: 1"]))
    assert lost.data == (
        "WorkerLost: 2 attempts failed\n  attempt 1: ValueError: 1\n"
        "  attempt 2: the worker was killed by SIGKILL"
    )
    cancelled = message(cancelled_result(TASK, ["ValueError: 1"]))
    assert cancelled.data == (
        "TaskCancelled: the task was ended on request (after 1 failed attempt, the last: "
        "ValueError: 1)"
    )
    assert cancelled.details is not None
    assert cancelled.details[ATTEMPTS] == 1


def test_a_large_value_stays_as_it_is() -> None:
    value = "00\n" + "abcd" * 50_000 + "\n"
    end = message(final_result(TASK, body_of(Value(value), f"{TASK}.2"), ["one"]))
    assert end.data == value
    assert end.details is not None
    assert end.details[ATTEMPTS] == 2


def test_pauses_grow_up_to_a_limit() -> None:
    options = RunOptions(retries=50, retry_delay=2.0)
    assert [options.pause(n) for n in (1, 2, 3, 49)] == [2.0, 4.0, 8.0, 600.0]
    assert RunOptions(retries=2, retry_delay=3600.0).pause(2) == 3600.0
    assert RunOptions(retries=2, retry_delay=0.0).pause(2) == 0.0


def test_each_attempt_at_a_followed_task_is_followed() -> None:
    now = [100.0]
    known = retries.Retries()
    known.accepted(EngineTask(TASK, "f", "", None, options=RunOptions(retries=3, retry_delay=0)))
    followed = FollowedOutput(known, lambda: now[0])
    request = OutputWanted(task_id=uuid.UUID(TASK), seconds=30, stdout=4, stderr=5)
    failed = EngineResult(TASK, body_of(RAISED))
    assert followed.rest(failed) == []  # nobody follows it
    assert followed.wanted(request) == (TASK, 30, (4, 5))
    printed = results.with_output(failed.body, {"stdout": "ä", "stdout_dropped": 7})
    (rest,) = followed.rest(EngineResult(TASK, printed))
    assert rest.context == {"stdout": (7, 9, "ä")}
    large = results.with_output(failed.body, {"stderr": "ä" * 50_000})
    parts = [e.context["stderr"] for e in followed.rest(EngineResult(TASK, large))]
    assert [(begin, end) for begin, end, _ in parts] == [(0, 65_536), (65_536, 100_000)]
    known.ended(failed)
    assert followed.wanted(request) is None  # it waits for its second attempt
    (second,) = known.take_due(time.monotonic() + 1)
    task = EngineTask(second.engine_id, "f", "", None)
    now[0] += 10
    assert followed.begins(task) == (f"{TASK}.2", 20, (0, 0))
    # What the service has is of the first attempt.
    assert followed.wanted(request) == (f"{TASK}.2", 30, (0, 0))
    again = request.model_copy(update={"attempt": 2})
    assert followed.wanted(again) == (f"{TASK}.2", 30, (4, 5))
    now[0] += 31
    assert followed.begins(task) is None
    other = request.model_copy(update={"task_id": uuid.uuid4()})
    assert followed.wanted(other) == (str(other.task_id), 30, (4, 5))


def test_a_task_is_followed_on_where_no_more_can_be_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(followed_output, "MOST_FOLLOWED", 1)
    now = [0.0]
    followed = FollowedOutput(retries.Retries(), lambda: now[0])
    for _ in range(2):
        followed.wanted(OutputWanted(task_id=uuid.UUID(TASK), seconds=30))
        now[0] += 20
    assert followed.begins(EngineTask(TASK, "f", "", None)) == (TASK, 10, (0, 0))


def test_bytes_of_a_failed_attempt_that_are_not_utf8_keep_their_positions() -> None:
    followed = FollowedOutput(retries.Retries(), lambda: 0.0)
    followed.wanted(OutputWanted(task_id=uuid.UUID(TASK), seconds=30))
    tail = StreamTail(9)
    tail.add(b"a line\na\xff\xc3\xa9\xf0")
    body = results.with_output(body_of(RAISED), results.output_details([tail, StreamTail(9)]))
    parts = [each.context["stdout"] for each in followed.rest(EngineResult(TASK, body))]
    assert parts == [(7, 11, "a\\xff\u00e9"), (11, 12, "\\xf0")]


class Clock:
    """Time that goes on when a test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_800_000_000 + self.now


@dataclass
class EngineModel:
    """What an engine knows: attempts that run, and ends that are not settled."""

    running: set[str] = field(default_factory=set)
    unsettled: dict[str, bytes] = field(default_factory=dict)
    started: Counter[str] = field(default_factory=Counter)

    def submit(self, task: EngineTask) -> bytes | None:
        """Start an attempt, or find it; return its end if it has ended."""
        engine_id = task.task_id
        if engine_id not in self.running and engine_id not in self.unsettled:
            self.started[engine_id] += 1
            self.running.add(engine_id)
        return self.unsettled.get(engine_id)

    def keep(self, engine_ids: set[str]) -> None:
        self.running &= engine_ids
        self.unsettled = {k: v for k, v in self.unsettled.items() if k in engine_ids}


class RetryMachine(RuleBasedStateMachine):
    """An endpoint with any sequence of ends, kills, repeated results and restarts."""

    tasks = Bundle("tasks")

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.patches = [patch.object(each, "time", self.clock) for each in (intake, retries)]
        for each in self.patches:
            each.start()
        self.directory = tempfile.TemporaryDirectory()
        self.engine = EngineModel()
        self.retries: dict[str, int] = {}
        self.ends: Counter[str] = Counter()
        self.killed: dict[str, int] = {}
        self.all_ends: list[EngineResult] = []
        #: How the engine ends a killed attempt; `None`: later.
        self.end_of_killed: Failure | None = CANCELLED
        self.open()

    def open(self) -> None:
        self.journal = Journal(Path(self.directory.name, "journal.db"))
        records: Any = SimpleNamespace(received=list)
        outbox: Any = set()
        self.in_flight = TasksInFlight(
            str(uuid.uuid4()), EndpointConfig(), self.journal, outbox, records
        )

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        try:
            for _ in range(100):
                self.clock.now += 10_000
                self.turn(lambda _turn: None)
                for engine_id in sorted(self.engine.running):
                    self.end(engine_id, Value("v"))
            assert self.ends == dict.fromkeys(self.retries, 1)
            assert not self.in_flight.running
            assert self.in_flight.retries.due == float("inf")
            assert self.journal.attempts() == []
        finally:
            self.journal.close()
            self.directory.cleanup()
            for each in self.patches:
                each.stop()

    def turn(self, work: Any, *, dies: bool = False) -> None:
        """Do as the agent in a turn; it may die after it has written its journal."""
        turn = Turn()
        work(turn)
        self.in_flight.begin_due(turn)
        with self.journal.batch(durable=False):
            self.journal.accept(turn.accepted)
            self.journal.attempted(turn.attempts)
            self.journal.finish(turn.finished)
        for each in turn.finished:
            message(each)
            self.ends[each.task_id] += 1
        if dies:
            self.restart()
            return
        for task in [*turn.accepted, *turn.begun]:
            assert self.engine.submit(task) is None
        for engine_id in [*turn.repeated, *(each.task_id for each in turn.finished)]:
            self.engine.unsettled.pop(engine_id, None)
        for engine_id, signum in turn.kills:
            if signum is None and engine_id in self.engine.running and self.end_of_killed:
                self.end(engine_id, self.end_of_killed)

    def restart(self) -> None:
        self.journal.close()
        self.open()
        submitted = {task.task_id: self.engine.submit(task) for task in self.in_flight.recover()}
        self.engine.keep(set(submitted))
        for engine_id, body in submitted.items():
            if body is not None:
                result = EngineResult(engine_id, body)
                self.turn(lambda turn, result=result: self.in_flight.finished(result, turn))

    def end(self, engine_id: str, end: Value | Failure, *, dies: bool = False) -> None:
        result = EngineResult(engine_id, body_of(end, engine_id))
        self.engine.running.discard(engine_id)
        self.engine.unsettled[engine_id] = result.body
        self.all_ends.append(result)
        self.turn(lambda turn: self.in_flight.finished(result, turn), dies=dies)

    @rule(
        target=tasks,
        allowed=st.integers(0, 3),
        on=st.sampled_from([(), ("lost",), ("OSError", 75)]),
        delay=st.sampled_from([0.0, 1.0]),
    )
    def accept(self, allowed: int, on: tuple[str | int, ...], delay: float) -> str:
        task_id = str(uuid.uuid4())
        options = RunOptions(allowed, on, delay) if allowed else None
        task = EngineTask(task_id, TASK, "buffer", options=options)
        self.retries[task_id] = allowed

        def arrive(turn: Turn) -> None:
            self.in_flight.running.add(task_id)
            self.in_flight.retries.accepted(task)
            turn.accepted.append(task)

        self.turn(arrive)
        return task_id

    @rule(
        pick=st.integers(0, 1000),
        end=st.sampled_from([Value("v"), Value("v", 75), RAISED, LOST, REFUSED]),
        dies=st.booleans(),
    )
    def an_attempt_ends(self, pick: int, end: Value | Failure, dies: bool) -> None:
        running = sorted(self.engine.running)
        if running:
            self.end(running[pick % len(running)], end, dies=dies)

    @rule(pick=st.integers(0, 1000))
    def an_end_is_repeated(self, pick: int) -> None:
        if self.all_ends:
            result = self.all_ends[pick % len(self.all_ends)]
            self.turn(lambda turn: self.in_flight.finished(result, turn))

    @rule(
        target=tasks,
        task_id=consumes(tasks),
        signum=st.sampled_from([None, 10]),
        end=st.sampled_from([CANCELLED, LOST, None]),
    )
    def a_kill_arrives(self, task_id: str, signum: int | None, end: Failure | None) -> Any:
        self.end_of_killed = end
        request = TaskKill(task_id=uuid.UUID(task_id), signum=signum)
        if task_id not in self.in_flight.running:
            return multiple()  # else it would be the end of a task that has not come yet
        if signum is None:
            self.killed[task_id] = self.attempts_at(task_id)
        self.turn(lambda turn: self.in_flight.kill(request, turn))
        return task_id

    @rule(seconds=st.sampled_from([0.3, 1.0, 5.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.clock.now += seconds
        self.turn(lambda _turn: None)

    @rule()
    def the_agent_is_killed(self) -> None:
        self.restart()

    def attempts_at(self, task_id: str) -> int:
        return sum(retries.task_of(each) == task_id for each in self.engine.started)

    @invariant()
    def nothing_happens_twice(self) -> None:
        if not hasattr(self, "engine"):
            return
        assert max(self.ends.values(), default=0) <= 1
        assert max(self.engine.started.values(), default=0) <= 1
        running = Counter(map(retries.task_of, self.engine.running))
        assert max(running.values(), default=0) <= 1
        for task_id, allowed in self.retries.items():
            assert self.attempts_at(task_id) <= allowed + 1
        for task_id, attempts in self.killed.items():
            assert self.attempts_at(task_id) == attempts


RetryMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
test_each_task_ends_once = RetryMachine.TestCase
