"""Events: which, in which order, with which details."""

from __future__ import annotations

import os

import pytest
from worlds import PATIENCE, FluxWorld, Recorder, shell, text

from waiting import until

BEGINNING = ["submit", "depend", "priority", "alloc", "start"]
END = ["finish", "release", "free", "clean"]


def recorded(world, spec: str, **options: object) -> Recorder:
    recorder = Recorder(world.executor.submit(spec, **options))
    recorder.wait("clean")
    return recorder


def test_the_names_are_those_of_rfc_21(world):
    names = {*BEGINNING, *END, "exception", "urgency", "debug", "flux-restart"}
    future = world.executor.submit(text("true"))
    assert future.EVENTS == world.executor.EVENTS == names
    future.result(PATIENCE)


def test_past_events_are_delivered_in_order(world):
    future = world.executor.submit(text("true"))
    Recorder(future).wait("clean")
    assert Recorder(future).names == BEGINNING + END


@pytest.mark.parametrize("script", ["exit 0", "exit 3", "kill -9 $$", "kill -9 $PPID; sleep 60"])
def test_the_events_of_a_job_that_ran(world, script):
    assert recorded(world, shell(script)).names == BEGINNING + END


@pytest.mark.usefixtures("idle")
def test_the_details_are_those_of_flux(world):
    events = {e.name: e for e in recorded(world, shell("exit 3", nodes=2)).events}
    assert events["submit"].context == {
        "userid": os.getuid(),
        "urgency": 16,
        "flags": 0,
        "version": 1,
    }
    assert events["priority"].context == {"priority": 16}
    annotations = events["alloc"].context["annotations"]
    assert annotations == {"sched": {"resource_summary": "rank[0-1]/core0"}}
    assert events["finish"].context == {"status": 3 << 8}
    assert events["release"].context == {"ranks": "all", "final": True}
    for name in ("depend", "start", "free", "clean"):
        assert events[name].context == {}


def test_timestamps_never_go_back(world):
    stamps = [event.timestamp for event in recorded(world, text("true")).events]
    assert stamps == sorted(stamps)
    assert stamps[0] > 1.5e9


def test_exception_flags_are_delivered(world):
    recorder = recorded(world, text("true"), waitable=True, debug=True)
    assert recorder.wait("submit").context["flags"] == 6


def test_the_future_is_not_done_before_the_callbacks_of_finish_were_called(world):
    seen = {}
    future = world.executor.submit(text("true"))
    for name in ("finish", "clean"):
        future.add_event_callback(name, lambda f, e: seen.setdefault(e.name, f.done()))
    Recorder(future).wait("clean")
    assert seen == {"finish": False, "clean": True}


def test_a_canceled_running_job(world, tmp_path):
    recorder = Recorder(world.executor.submit(shell(f"touch {tmp_path}/up; exec sleep 600")))
    # Flux does not tell of tasks' starts, and one that is ended in the midst of its own has failed.
    until((tmp_path / "up").exists)
    world.cancel(recorder.future.jobid(), "why not")
    recorder.wait("clean")
    assert recorder.names == [*BEGINNING, "exception", *END]
    assert recorder.wait("exception").context == {
        "type": "cancel",
        "severity": 0,
        "note": "why not",
        "userid": os.getuid(),
    }
    assert recorder.wait("finish").context["status"] == (128 + 15) << 8


def out_of_time(world, tmp_path, before: str, after: str) -> Recorder:
    """A job that was between two commands, or later, when its time was over."""
    for duration in (2, 10, 40):  # on a busy machine the first may end before it has begun
        script = f"{before}; touch {tmp_path}/up; {after}"
        recorder = recorded(world, shell(script, duration=duration))
        if (tmp_path / "up").exists():
            break
    return recorder


def test_a_job_that_ran_out_of_time(world, tmp_path):
    recorder = out_of_time(world, tmp_path, "true", "exec sleep 600")
    assert recorder.names == [*BEGINNING, "exception", *END]
    assert recorder.wait("finish").context["status"] == (128 + 14) << 8


def test_a_job_that_ran_out_of_time_and_ignores_signals_is_killed(world, tmp_path):
    recorder = out_of_time(world, tmp_path, "trap '' ALRM TERM", "while :; do sleep 1; done")
    assert recorder.wait("finish").context["status"] == (128 + 9) << 8
    waited = recorder.wait("finish").timestamp - recorder.wait("exception").timestamp
    # Flux's kill-timeout is 5 s; another thread of it, which may be late, tells of the exception.
    assert waited > 2.5


@pytest.mark.parametrize(("program", "status"), [("no-such-program", 127), ("/etc/passwd", 126)])
def test_a_job_whose_program_cannot_be_started(world, program, status):
    recorder = recorded(world, text(program))
    # Flux's shell tells of it itself, maybe before its own start is told.
    beginning, end = recorder.names[: -len(END)], recorder.names[-len(END) :]
    assert sorted(beginning) == sorted([*BEGINNING, "exception"])
    assert end == END
    assert recorder.wait("finish").context["status"] == status << 8


def test_every_task_that_cannot_be_started_is_reported(world):
    recorder = recorded(world, text("no-such-program", nodes=2))
    notes = [e.context["note"] for e in recorder.events if e.name == "exception"]
    tasks = sorted(note.split(" (")[0] for note in notes)
    # Flux ends the job at the first one: another node may not have got so far.
    allowed = [["task 0", "task 1"]] + [["task 0"], ["task 1"]] * isinstance(world, FluxWorld)
    assert tasks in allowed


def test_an_unsatisfiable_job(world):
    recorder = recorded(world, text("true", cores=10_000))
    assert recorder.names == ["submit", "depend", "priority", "exception", "clean"]
    assert recorder.wait("exception").context["type"] == "alloc"


def test_a_job_that_is_canceled_while_it_waits(world):
    recorder = Recorder(world.executor.submit(text("true"), urgency=0))
    recorder.wait("priority")
    world.cancel(recorder.future.jobid())
    recorder.wait("clean")
    assert recorder.names == ["submit", "depend", "priority", "exception", "clean"]
