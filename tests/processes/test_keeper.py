"""A keeper starts groups of processes, reports their ends and leaves none behind."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from flux_endpoint.processes import ProcessKeeper

#: Leaves a process that has its own session, no parent, and standard output still open.
DAEMON = "(setsid sh -c 'echo daemon; exec sleep 1000' &)"


def test_a_group_is_reported_from_start_to_end(group):
    started, exited, ended = group.run(group.command("true"))
    assert started[:2] == ("started", "g")
    assert len(started[2]) == 1
    assert exited == ("exit", "g", 0, 0)
    assert ended == ("end", "g", 0)


def test_the_shell_ends_with_the_highest_status(group):
    calls = group.run(group.shell("exit 3"), group.shell("exit 5"), group.shell("exit 0"))
    assert {call[2:] for call in calls if call[0] == "exit"} == {(0, 3 << 8), (1, 5 << 8), (2, 0)}
    assert os.waitstatus_to_exitcode(calls[-1][2]) == 5


def test_a_signal_counts_as_128_and_its_number(group):
    calls = group.run(group.shell("kill -9 $$"))
    assert calls[1] == ("exit", "g", 0, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(calls[-1][2]) == 137


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program"])
def test_a_missing_program_is_reported_by_name(group, program):
    failed, ended = group.run(group.command(program))
    assert failed[:3] == ("failed", "g", 0)
    assert isinstance(failed[3], FileNotFoundError)
    assert failed[3].filename == program
    assert os.waitstatus_to_exitcode(ended[2]) == 127


def test_a_file_that_is_no_program_is_reported(group, tmp_path):
    (tmp_path / "data").write_text("x")
    failed, ended = group.run(group.command(str(tmp_path / "data")))
    assert isinstance(failed[3], PermissionError)
    assert os.waitstatus_to_exitcode(ended[2]) == 126


def test_a_missing_directory_is_reported_by_name(group):
    failed, _ = group.run(group.command("true", cwd="/no/such/directory"))
    assert isinstance(failed[3], FileNotFoundError)
    assert failed[3].filename == "/no/such/directory"


def test_an_output_file_that_cannot_be_opened_is_reported_by_name(group):
    failed, _ = group.run(group.command("true", stdout="/no/such/directory/out"))
    assert failed[3].filename == "/no/such/directory/out"


def test_an_impossible_argument_is_reported(group):
    failed, _ = group.run(group.command("echo", "null\0byte"))
    assert "null byte" in str(failed[3])


def test_when_one_command_cannot_start_the_others_are_killed(group, lives):
    first = group.shell("echo up; exec sleep 1000", stdout=lives.writable)
    group.spawn(first, group.command("no-such-program"))
    lives.close_ours()
    assert [call[0] for call in group.until_end()] == ["failed", "end"]
    lives.wait_until_all_are_dead()


def test_a_script_without_interpreter_line_is_run_by_sh(group, tmp_path):
    script = tmp_path / "script"
    script.write_text("exit 7\n")
    script.chmod(0o755)
    assert group.run(group.command(str(script)))[1] == ("exit", "g", 0, 7 << 8)


def test_files_are_appended_to_and_private(group, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        group.run(
            group.shell("echo said; echo meant >&2", stdout="out", stderr="out", cwd=str(tmp_path))
        )
    assert sorted(out.read_text().split()) == ["meant", "meant", "said", "said"]
    assert out.stat().st_mode & 0o777 == 0o600


def test_descriptors_are_passed_on(group, tmp_path):
    given, taken = os.pipe()
    (tmp_path / "in").write_text("through")
    group.spawn(group.command("cat", stdin=str(tmp_path / "in"), stdout=taken))
    os.close(taken)
    with os.fdopen(given) as stream:
        assert stream.read() == "through"
    group.until_end()


def test_a_group_of_many_commands_with_descriptors_of_their_own(group):
    pipes = [os.pipe() for _ in range(270)]  # more than fit in one message
    group.spawn(*(group.command("echo", str(i), stdout=w) for i, (_, w) in enumerate(pipes)))
    for _, writable in pipes:
        os.close(writable)
    for index, (readable, _) in enumerate(pipes):
        with os.fdopen(readable) as stream:
            assert stream.read() == f"{index}\n"
    assert len(group.until_end()) == 1 + 270 + 1


def test_commands_get_their_environment_and_no_more(group, tmp_path):
    env = {"PATH": os.environ["PATH"], "MINE": "ünï"}
    group.run(group.shell("env", env=env, stdout=str(tmp_path / "env")))
    lines = (tmp_path / "env").read_text().splitlines()
    assert "MINE=ünï" in lines
    assert {line.split("=")[0] for line in lines} <= {"PATH", "MINE", "PWD", "SHLVL", "_", "OLDPWD"}


def test_commands_get_no_other_descriptors(group, tmp_path):
    group.run(group.shell("ls /proc/$$/fd", stdout=str(tmp_path / "fds")))
    assert set((tmp_path / "fds").read_text().split()) <= {"0", "1", "2", "3"}  # 3: ls's own


def test_commands_start_with_default_signal_handlers(group, tmp_path):
    group.run(group.command("cat", "/proc/self/status", stdout=str(tmp_path / "status")))
    fields = dict(line.split(":", 1) for line in (tmp_path / "status").read_text().splitlines())
    # 32 and 33 are the C library's own: whoever started us may have left them as no program can.
    ours = ~(0b11 << 31)
    assert int(fields["SigIgn"], 16) & ours == 0
    assert int(fields["SigBlk"], 16) & ours == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_a_command_does_not_inherit_ignored_signals(make_group, number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        group = make_group()
    finally:
        signal.signal(number, before)
    calls = group.run(group.shell(f"kill -{number} $$"))
    assert [os.waitstatus_to_exitcode(call[3]) for call in calls if call[0] == "exit"] == [-number]


def test_a_signal_reaches_the_process_group_of_each_command(group, lives):
    script = "sleep 1000 & echo up; wait"
    group.spawn(*[group.shell(script, stdout=lives.writable)] * 2)
    lives.close_ours()
    assert {lives.read_line(), lives.read_line()} == {"up"}
    group.keeper.signal("g", signal.SIGTERM)
    calls = group.until_end()
    assert sorted(c[2:] for c in calls if c[0] == "exit") == [
        (0, signal.SIGTERM),
        (1, signal.SIGTERM),
    ]
    lives.wait_until_all_are_dead()


def test_a_command_may_catch_a_signal(group, lives):
    script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done"
    group.spawn(group.shell(script, stdout=lives.writable))
    lives.close_ours()
    lives.read_line()
    group.keeper.signal("g", signal.SIGTERM)
    assert os.waitstatus_to_exitcode(group.until_end()[-1][2]) == 9


def test_processes_left_by_a_command_end_with_the_group(group, lives):
    group.spawn(group.shell(DAEMON, stdout=lives.writable))
    lives.close_ours()
    assert os.waitstatus_to_exitcode(group.until_end()[-1][2]) == 0
    lives.wait_until_all_are_dead()


def test_kill_ends_the_whole_tree(group, lives):
    group.spawn(group.shell(f"{DAEMON}; trap '' TERM; sleep 1000 & wait", stdout=lives.writable))
    lives.close_ours()
    assert lives.read_line() == "daemon"
    group.keeper.kill("g")
    assert group.until_end()[-2] == ("exit", "g", 0, signal.SIGKILL)
    lives.wait_until_all_are_dead()


def test_kill_of_one_group_spares_the_others(group, lives):
    for key in ("a", "b"):
        group.spawn(group.shell("echo up; exec sleep 1000", stdout=lives.writable), key=key)
    lives.close_ours()
    assert {lives.read_line(), lives.read_line()} == {"up"}
    group.keeper.kill("a")
    group.until_end("a")
    assert len(psutil.Process(group.keeper.pid).children()) == 1


def test_a_killed_shell_ends_its_process_tree(group, lives):
    group.spawn(group.shell(f"{DAEMON}; echo up; exec sleep 1000", stdout=lives.writable))
    lives.close_ours()
    assert {lives.read_line(), lives.read_line()} == {"up", "daemon"}
    (shell,) = psutil.Process(group.keeper.pid).children()
    shell.kill()
    assert group.until_end()[-1] == ("end", "g", signal.SIGKILL)
    lives.wait_until_all_are_dead()


def test_close_ends_everything_and_says_so(group, lives):
    for key in ("a", "b"):
        script = f"{DAEMON}; sleep 1000"
        group.spawn(group.shell(script, stdout=lives.writable), key=key)
    lives.close_ours()
    assert {lives.read_line(), lives.read_line()} == {"daemon"}
    group.keeper.close()
    lives.wait_until_all_are_dead()
    calls = group.all_calls()  # without "started" for one that was not seen to run yet
    assert sorted(call for call in calls if call[0] == "end") == [
        ("end", k, signal.SIGKILL) for k in "ab"
    ]
    group.keeper.close()  # again: nothing to do
    with pytest.raises(RuntimeError, match="not running"):
        group.spawn(group.command("true"))


@pytest.fixture
def held_up(group, lives, tmp_path):
    """A group whose first command runs, and whose second waits for a fifo's other end."""
    os.mkfifo(tmp_path / "fifo")
    group.spawn(
        group.shell(f"{DAEMON}; sleep 1000", stdout=lives.writable),
        group.command("cat", stdin=str(tmp_path / "fifo")),
        group.command("touch", str(tmp_path / "third")),
    )
    lives.close_ours()
    assert lives.read_line() == "daemon"
    return tmp_path


def test_a_group_that_is_killed_while_it_starts_only_ends(group, lives, held_up):
    group.keeper.signal("g", signal.SIGTERM)
    group.keeper.kill("g")
    ((*end, status),) = group.until_end()
    assert end == ["end", "g"]
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGKILL
    lives.wait_until_all_are_dead()
    assert not (held_up / "third").exists()


def test_close_ends_a_group_that_is_just_starting(group, lives, held_up):
    group.keeper.close()
    assert group.all_calls() == [("end", "g", signal.SIGKILL)]
    lives.wait_until_all_are_dead()
    assert not (held_up / "third").exists()


def test_a_signal_to_a_group_that_is_just_starting_comes_when_it_has(group, lives, held_up):
    group.keeper.signal("g", signal.SIGTERM)
    (held_up / "fifo").write_text("")
    calls = group.until_end()
    assert calls[0][0] == "started"
    assert ("exit", "g", 0, signal.SIGTERM) in calls
    lives.wait_until_all_are_dead()


def test_killing_the_helper_ends_all_groups(group, lives):
    group.spawn(group.shell(f"{DAEMON}; sleep 1000", stdout=lives.writable))
    lives.close_ours()
    assert lives.read_line() == "daemon"
    os.kill(group.keeper.pid, signal.SIGKILL)
    lives.wait_until_all_are_dead()
    assert group.until_end()[-1][0] == "end"
    with pytest.raises(RuntimeError, match="helper has ended"):
        group.spawn(group.command("true"))


def test_when_the_helper_is_killed_while_it_reads_its_request_is_refused(group):
    os.kill(group.keeper.pid, signal.SIGSTOP)
    killer = threading.Timer(0.5, os.kill, (group.keeper.pid, signal.SIGKILL))
    killer.start()  # when the request has filled the socket, and waits
    with pytest.raises(RuntimeError, match="helper has ended"):
        group.spawn(group.command("true", env={"LONG": "x" * (8 << 20)}))
    killer.join()


def test_a_key_is_free_again_when_its_group_has_ended(group, lives):
    group.spawn(group.command("sleep", "1000"))
    with pytest.raises(ValueError, match="'g' is running"):
        group.spawn(group.command("true"))
    group.keeper.kill("g")
    group.until_end()
    assert group.run(group.command("true"))[-1] == ("end", "g", 0)


def test_a_group_needs_a_command_and_a_command_a_program(group):
    with pytest.raises(ValueError, match="no commands"):
        group.spawn()
    with pytest.raises(ValueError, match="a program"):
        group.spawn(group.command())


def test_unknown_keys_are_ignored(group):
    group.keeper.signal("unknown", signal.SIGTERM)
    group.keeper.kill("unknown")
    assert group.run(group.command("true"))[-1] == ("end", "g", 0)


def test_callbacks_may_raise_and_may_start_the_next_group(group):
    ended: list[str] = []

    def on_end(key: str, status: int) -> None:
        ended.append(key)
        if len(ended) < 5:
            chain.spawn(str(len(ended)), [group.command("true")])
        else:
            group.calls.put(("all",))
        raise RuntimeError("a callback's own fault")

    chain = ProcessKeeper(lambda *_: None, lambda *_: None, on_end, lambda *_: None)
    with chain:
        chain.spawn("0", [group.command("true")])
        assert group.next() == ("all",)
    assert ended == ["0", "1", "2", "3", "4"]


def test_a_closed_keeper_leaves_no_process_and_no_descriptor(group):
    helper = psutil.Process(group.keeper.pid)
    times = 20  # more than what threads of earlier tests open or close in between
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(times):
        group.run(group.command("true"))
    assert len(list(Path("/proc/self/fd").iterdir())) < before + times
    group.keeper.close()
    assert not helper.is_running()
