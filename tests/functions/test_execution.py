"""Running a command: where, with which files, and how its end is reported."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from pathlib import Path

import pytest

from flux_endpoint.functions import ShellFunction, execution, outcome_of
from flux_endpoint.usage import Meter

FAILED = "subprocess.CalledProcessError"


def names(directory):
    return sorted(path.name for path in directory.iterdir())


class TestOutcome:
    """Return codes follow Python's `subprocess`."""

    @pytest.mark.parametrize("code", [1, 3, 124, 137, 255])
    def test_an_exit_code_is_itself(self, code):
        result = ShellFunction(f"exit {code}")()
        assert (result.returncode, result.exception_name) == (code, FAILED)

    @pytest.mark.parametrize("signum", [1, 9, 15])
    def test_a_signal_is_negative(self, signum):
        result = ShellFunction(f"kill -{signum} $$")()
        assert (result.returncode, result.exception_name) == (-signum, FAILED)

    def test_success_is_0_without_an_exception(self):
        assert outcome_of(0).exception_name is None

    def test_a_command_that_does_not_exist_is_bash_s_127_with_its_words(self):
        result = ShellFunction("no-such-command")()
        assert result.returncode == 127
        assert "no-such-command: command not found" in result.stderr

    def test_nothing_but_the_command_writes_to_its_streams(self):
        result = ShellFunction("true")()
        assert (result.stdout, result.stderr) == ("", "")

    def test_standard_input_is_empty(self):
        assert ShellFunction("cat")().returncode == 0


class TestReports:
    """A worker's manager can follow the output of a command that runs for a while."""

    @pytest.fixture
    def reports(self, monkeypatch):
        found = []
        monkeypatch.setattr(execution._Reports, "to", staticmethod(found.append))
        return found

    def test_the_files_are_reported_while_the_command_runs(self, directory, reports, monkeypatch):
        gate, out = directory / "gate", directory / "out"
        out.write_text("before\n")
        monkeypatch.setattr(execution._Reports, "to", lambda f: (reports.append(f), gate.touch()))
        command = f"echo one; until [ -e {gate} ]; do sleep 0.01; done; exit 3"
        result = ShellFunction(command, stdout="out", stderr="err", walltime=60)()
        assert (result.stdout, result.returncode) == ("one\n", 3)
        (files,) = reports
        assert files.paths == (str(out), str(directory / "err"))
        assert files.starts == (7, 0)

    def test_a_system_that_can_not_wait_for_both_reports_nothing(self, reports, monkeypatch):
        monkeypatch.delattr(os, "pidfd_open")
        meter = Meter()
        meter.begin()
        assert ShellFunction("sleep 0.2; exit 3")().returncode == 3
        assert reports == []
        assert meter.end().max_rss


class TestDirectory:
    """It runs in the sandbox if there is one, else in the current directory."""

    def test_commands_run_in_the_current_directory(self, directory):
        assert ShellFunction("pwd -P")().stdout == f"{directory.resolve()}\n"

    def test_the_sandbox_is_created_and_the_caller_stays_where_it_is(self, directory, monkeypatch):
        sandbox = directory / "deep" / "sandbox"
        monkeypatch.setenv("GC_TASK_SANDBOX_DIR", str(sandbox))
        assert ShellFunction("pwd -P", stderr="e")().stdout == f"{sandbox.resolve()}\n"
        assert os.getcwd() == str(directory)  # noqa: PTH109
        assert (sandbox / "e").exists()


class TestFiles:
    """The streams go to files that stay."""

    def test_output_files_are_named_after_the_task(self, directory, monkeypatch):
        monkeypatch.setenv("GC_TASK_UUID", "T")
        ShellFunction("echo out; echo err >&2")()
        err, out = sorted(directory.iterdir(), key=lambda path: path.suffix)
        assert out.name.startswith("T.")
        assert out.name.endswith(".stdout")
        assert err.name.endswith(".stderr")
        assert (out.read_text(), err.read_text()) == ("out\n", "err\n")

    def test_each_run_has_separate_output_files(self, directory, monkeypatch):
        monkeypatch.setenv("GC_TASK_UUID", "T")
        for _ in range(3):
            ShellFunction("echo out; echo err >&2")()
        assert len(names(directory)) == 6

    def test_an_empty_output_file_serves_the_next_command(self, directory, monkeypatch):
        for task in "ABC":
            monkeypatch.setenv("GC_TASK_UUID", task)
            shown = ShellFunction("ls; echo err >&2")().stdout
            assert [name.split(".")[::2] for name in shown.split() if name[0] == task] == [
                [task, "stderr"],
                [task, "stdout"],
            ]
            ShellFunction("true")()
        # Of each three commands with a silent stream, the last one's file is left.
        assert len(names(directory)) == 8
        assert sorted(path.stat().st_size for path in directory.iterdir())[:2] == [0, 0]

    def test_no_command_gets_a_file_that_a_background_process_may_write_to(self, directory):
        ShellFunction("(until test -e go; do sleep 0.01; done; echo late; touch done) &")()
        following = [ShellFunction("true")() for _ in range(2)]
        result = ShellFunction("touch go; until test -e done; do sleep 0.01; done")()
        assert [each.stdout for each in (*following, result)] == ["", "", ""]
        late = [path for path in directory.iterdir() if path.stat().st_size]
        assert [path.read_text() for path in late] == ["late\n"]

    @pytest.mark.parametrize("change", ["rm *.std*", "for f in *.std*; do ln $f link.$f; done"])
    def test_an_output_file_that_was_removed_or_linked_is_not_used_again(self, directory, change):
        ShellFunction("true")()
        subprocess.run(["bash", "-c", change], check=True, cwd=directory)
        before = {path.stat().st_ino for path in directory.glob("link.*")}
        assert ShellFunction("echo x; echo y >&2")().stdout == "x\n"
        written = {path.stat().st_ino for path in directory.iterdir() if path.stat().st_size}
        assert len(written) == 2
        assert not written & before

    def test_output_files_have_names_without_a_task(self, directory):
        ShellFunction("true")()
        assert [name.rpartition(".")[2] for name in names(directory)] == ["stderr", "stdout"]

    def test_given_output_files_are_appended_to_and_only_new_lines_are_returned(self, directory):
        function = ShellFunction("echo {x}; echo e{x} >&2", stdout="logs/o", stderr="logs/deep/e")
        assert function(x=1).stdout == "1\n"
        second = function(x=2)
        assert (second.stdout, second.stderr) == ("2\n", "e2\n")
        assert (directory / "logs" / "o").read_text() == "1\n2\n"
        assert (directory / "logs" / "deep" / "e").read_text() == "e1\ne2\n"
        assert names(directory) == ["logs"]

    def test_an_absolute_path_is_taken_as_it_is(self, directory, monkeypatch):
        monkeypatch.setenv("GC_TASK_SANDBOX_DIR", str(directory / "sandbox"))
        ShellFunction("echo x", stdout=directory / "o")()
        assert (directory / "o").read_text() == "x\n"

    def test_both_streams_may_share_a_file(self, directory):
        result = ShellFunction("echo o; echo e >&2", stdout="both", stderr="both")()
        assert (directory / "both").read_text() == result.stdout == result.stderr == "o\ne\n"

    def test_a_command_may_truncate_or_remove_its_output_file(self, directory):
        (directory / "o").write_text("earlier " * 100)
        assert ShellFunction(": > o; echo new", stdout="o")().stdout == "new\n"
        assert ShellFunction("echo there; rm o", stdout="o")().stdout == "there\n"

    def test_a_device_has_no_lines(self):
        assert ShellFunction("echo x", stdout="/dev/null")().stdout == ""

    def test_a_file_that_cannot_be_written_is_named(self, directory):
        (directory / "taken").write_text("")
        with pytest.raises(OSError, match="taken"):
            ShellFunction("true", stdout="taken/o")()
        with pytest.raises(OSError, match=str(directory)):
            ShellFunction("true", stdout=directory)()


def test_snippets_are_the_last_lines():
    result = ShellFunction("seq 10; seq 5 >&2", snippet_lines=3)()
    assert (result.stdout, result.stderr) == ("8\n9\n10\n", "3\n4\n5\n")


def test_several_commands_at_once_do_not_mix(directory):
    results = {}

    def run(x):
        results[x] = ShellFunction("for i in 1 2 3; do echo {x}; done", walltime=60)(x=x).stdout

    threads = [threading.Thread(target=run, args=(x,)) for x in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {x: f"{x}\n" * 3 for x in range(8)}


def descriptors():
    """This process's open files; what is no longer open as it is looked at is none."""
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add((each.name, str(each.readlink())))
    return found


def test_no_file_descriptor_stays_open():
    ShellFunction("true", walltime=60)()
    before = descriptors()
    for _ in range(3):
        ShellFunction("true")()
        ShellFunction("true", walltime=60)()
    assert descriptors() <= before  # something else may have been closed meanwhile


class TestLongCommands:
    """A command that is too long for an argument of a program runs as any other."""

    #: A here-document: more than Linux takes in one argument.
    _LONG = "cat > /dev/null <<'END'\n" + "x" * 200_000 + "\nEND\n"

    @pytest.mark.parametrize(
        ("command", "code", "stdout"),
        [
            ("echo caf\u00e9 $0 $#", 0, "caf\u00e9 bash 0\n"),
            ("cat <<'END'\nto the end\nEND", 0, "to the end\n"),
            ("exit 3", 3, ""),
            ("false", 1, ""),
            ("kill -9 $$", -9, ""),
            ("no-such-command", 127, ""),
            ("cat; echo read nothing", 0, "read nothing\n"),
        ],
    )
    def test_long_commands_end_like_short_ones(self, directory, command, code, stdout):
        short = ShellFunction(command)()
        long = ShellFunction(self._LONG.replace("{", "{{") + command)()

        assert (short.returncode, short.stdout) == (code, stdout)
        assert (long.returncode, long.stdout) == (code, stdout)

    @pytest.mark.parametrize("size", [-2, -1, 0, 1])
    def test_a_command_of_maximum_argument_length_runs(self, directory, size):
        command = "echo " + "x" * (128 * 1024 + size - len("echo "))

        result = ShellFunction(command, snippet_lines=1)()

        assert (result.returncode, len(result.stdout)) == (0, len(command) - len("echo ") + 1)

    def test_a_walltime_ends_long_commands(self, directory):
        result = ShellFunction(self._LONG + "sleep 1000", walltime=0.5)()

        assert result.returncode == 124


class TestFilesThatCannotBeWritten:
    """Errors that name the file."""

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_an_output_path_that_is_a_directory_is_refused(self, directory, stream):
        (directory / "output").mkdir()

        with pytest.raises(IsADirectoryError, match="output"):
            ShellFunction("true", **{stream: "output"})()

    def test_output_on_a_full_disk_is_reported(self, full_disk, monkeypatch):
        monkeypatch.setenv("GC_TASK_SANDBOX_DIR", str(full_disk))
        target = full_disk / "output.txt"

        result = ShellFunction("head -c 1000000 /dev/zero", stdout="output.txt")()

        assert result.returncode == 1
        assert f"{target}: No space left on device" in result.stderr


@pytest.fixture
def full_disk(tmp_path):
    """A file system that has room for little more than names."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("not run: no file system can be mounted here")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)
