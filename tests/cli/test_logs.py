"""`flux-endpoint logs`, as a person and as a program sees it."""

from __future__ import annotations

import json
import subprocess

import pytest
from tests.cli.conftest import COMMAND, PATIENCE, WAIT
from tests.cli.test_attach import prints_at

from flux_endpoint import ShellFunction
from flux_endpoint.cli.task_output import last_lines_and_new
from flux_endpoint.protocol.operations import OutputAnswer, StreamPart
from flux_endpoint.serialize import ComputeSerializer, PureSourceTextInspect
from foreground import interrupt
from waiting import until

LINES = """\
2026-01-02T03:04:05.678Z INFO    endpoint starts endpoint_id=1 executor=local
2026-01-02T03:04:06.000Z ERROR   something failed reason="no good"
a line of something else
"""


@pytest.fixture
def lab(bare):
    """An endpoint with a log of three lines."""
    bare.run("configure", "lab")
    bare.log = bare.home / "endpoints" / "lab" / "endpoint.log"
    bare.log.write_text(LINES)
    return bare


@pytest.fixture
def follow():
    """Start a command that goes on; it is ended after the test."""
    started = []

    def follow(terminal, *arguments):
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=terminal.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield follow
    for process in started:
        process.kill()
        process.communicate()


def test_logs_shows_the_last_lines_of_an_endpoints_log(lab):
    assert lab.out("logs", "lab") == LINES
    assert lab.out("logs", "lab", "-n", "1") == "a line of something else\n"
    assert lab.out("logs", "lab", "--lines=0") == ""


def test_logs_without_a_name_shows_all_endpoints_with_their_names(lab):
    lab.run("configure", "other")
    (lab.home / "endpoints" / "other" / "endpoint.log").write_text("hello\n")
    said = lab.out("logs", "-n1")
    assert said == "lab   | a line of something else\nother | hello\n"


def test_a_single_log_has_no_names_before_its_lines(lab):
    assert lab.out("logs") == LINES


def test_json_is_an_object_a_line_with_time_level_and_message(lab):
    first, second, third = map(json.loads, lab.out("logs", "--json").splitlines())
    assert first == {
        "source": "lab",
        "time": "2026-01-02T03:04:05.678Z",
        "level": "info",
        "message": "endpoint starts endpoint_id=1 executor=local",
        "line": LINES.splitlines()[0],
    }
    assert second["level"] == "error"
    assert third == {
        "source": "lab",
        "time": None,
        "level": None,
        "message": None,
        "line": "a line of something else",
    }


def test_logs_that_are_json_themselves_are_read(lab):
    entry = {"time": "2026-01-02T03:04:05.678Z", "level": "warning", "event": "so it is", "x": 1}
    lab.log.write_text(json.dumps(entry) + '\n{"not": "ours"}\n')
    first, second = map(json.loads, lab.out("logs", "--json").splitlines())
    assert (first["level"], first["message"]) == ("warning", "so it is")
    assert json.loads(first["line"]) == entry
    assert second["level"] is None


def test_errors_are_coloured_on_request(lab):
    coloured = lab.out("logs", "lab", "--color").splitlines()
    assert coloured[1] == f"\033[01;31m{LINES.splitlines()[1]}\033[0;0m"
    assert coloured[0] == LINES.splitlines()[0]


def test_following_shows_new_lines_until_ctrl_c_and_ends_quietly(lab, follow):
    process = follow(lab, "logs", "lab", "-f", "-n", "1")
    assert process.stdout.readline() == "a line of something else\n"
    with lab.log.open("a") as log:
        log.write("one more\n")
    assert process.stdout.readline() == "one more\n"
    interrupt(process)
    assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == 130


def test_following_waits_for_a_missing_log(lab, follow):
    lab.log.unlink()
    process = follow(lab, "logs", "lab", "--follow")
    lab.log.write_text("born\n")
    assert process.stdout.readline() == "born\n"


def test_following_ends_silently_when_its_output_is_closed(lab, follow):
    process = follow(lab, "logs", "lab", "-f")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(PATIENCE) == 141


def test_a_missing_log_exits_with_66_and_lists_existing_ones(bare):
    assert "there are no logs in" in bare.err("logs", status=66)
    assert "there are none yet" in bare.err("logs", "lab", status=66)
    assert "no stack has run" in bare.err("logs", "service", status=66)
    bare.run("configure", "lab")
    said = bare.err("logs", "nowhere", status=66)
    assert "neither an endpoint nor a program is called 'nowhere'; there are: lab" in said
    assert "lab has no log yet" in bare.err("logs", "lab", status=66)


def test_a_log_that_can_not_be_read_is_one_sentence(lab):
    lab.log.unlink()
    lab.log.mkdir()
    assert lab.err("logs", "lab", status=74) == f"Error: {lab.log}: Is a directory\n"


def test_wrong_options_are_refused(bare):
    assert "-n" in bare.err("logs", "-n", "many", status=64)
    assert "-n" in bare.err("logs", "-n", "-1", status=64)


@pytest.mark.rabbitmq
@pytest.mark.stack
class TestStack:
    def test_the_programs_of_a_stack_have_logs(self, stack):
        assert "service ready" in stack.out("logs", "service", "-n", "10000")
        assert "service ready" in stack.out("logs", "stack/service", "-n", "10000")
        assert "executor=local" in stack.out("logs", "local", "-n", "10000")
        said = stack.out("logs", "-n", "3")
        assert {line.split()[0] for line in said.splitlines()} >= {"service", "local"}

    def test_the_log_of_the_stacks_endpoint_can_be_followed(self, stack, follow, gate):
        process = follow(stack, "logs", "local", "-f", "-n", "1")
        process.stdout.readline()
        with stack.executor() as executor:
            future = executor.submit(WAIT, gate=str(gate))
            future.wait_submitted(PATIENCE)
            future.kill()
            for line in process.stdout:
                if f"asked to end a task task_id={future.task_id}" in line:
                    break
            assert future.exception(PATIENCE) is not None

    def test_the_output_of_a_task_is_followed_to_its_end(self, stack, executor, follow, gate):
        executor.serializer = ComputeSerializer(strategy_code=PureSourceTextInspect())
        function = executor.submit(prints_at, str(gate), False)
        executor.serializer = ComputeSerializer()
        command = executor.submit(
            ShellFunction("echo 1; echo 2; until [ -e {gate} ]; do sleep 0.02; done; echo 3 >&2"),
            gate=str(gate),
        )
        assert next(function.output()) == "begun ä\n"
        files = stack.home / "endpoints" / "local" / "tasks_working_dir"
        until(
            lambda: (
                [each.read_text() for each in files.glob(f"{command.task_id}*.stdout")]
                == ["1\n2\n"]
            )
        )
        process = follow(stack, "logs", "-f", "--task", function.task_id)
        of_files = follow(stack, "logs", "-f", "-n1", "--json", "--task", command.task_id)
        assert process.stdout.readline() == "stdout | begun ä\n"
        shown = json.loads(of_files.stdout.readline())
        assert (shown["source"], shown["line"]) == ("stdout", "2")
        gate.touch()
        lines = ["stderr | warned\n", "stdout | done\n", "stdout | rest\n"]
        assert sorted(process.stdout) == lines
        (line,) = of_files.stdout
        assert (json.loads(line)["source"], json.loads(line)["line"]) == ("stderr", "3")
        assert (process.wait(PATIENCE), of_files.wait(PATIENCE)) == (0, 0)
        assert process.stderr.read() == ""
        # It has ended: its last lines, and no wait.
        last = stack.out("logs", "-f", "-n1", "--task", function.task_id).splitlines()
        assert sorted(last) == ["stderr | warned", "stdout | rest"]

    def test_a_log_that_is_not_there_says_why(self, stack):
        assert "up has no log yet" in stack.err("logs", "up", status=66)


def test_the_output_of_functions_is_a_separate_log(lab):
    absent = lab.run("logs", "lab/output", status=66).stderr
    lab.log.with_name("output.log").write_text("printed by a function\n")

    assert "no Python function of this endpoint has printed anything" in absent
    assert lab.out("logs", "lab/output") == "printed by a function\n"
    assert "lab/output | printed by a function\n" in lab.out("logs")
    assert lab.out("logs", "lab") == LINES


class Answers:
    """The service, whose task prints these parts."""

    def __init__(self, *texts):
        self.texts = list(texts)

    def output(self, task_id, *, attempt, stdout, stderr):
        text = self.texts.pop(0)
        part = StreamPart(begin=stdout, end=stdout + len(text), text=text)
        return OutputAnswer(ended=not self.texts, stdout=part)


@pytest.mark.parametrize(
    ("count", "shown"),
    [(9, ["a", "bc", "d", "ef"]), (1, ["bc", "d", "ef"]), (0, ["c", "d", "ef"])],
)
def test_followed_output_begins_with_the_last_lines(count, shown):
    parts = last_lines_and_new(Answers("a\nb", "c\nd\ne", "f"), "id", count)
    assert list(parts) == [(0, line) for line in shown]


def test_a_line_that_does_not_end_is_shown_in_parts():
    dots = "." * 50_000
    lines = [line for _, line in last_lines_and_new(Answers(dots, dots, dots, "\n"), "id", 1)]
    assert lines == [2 * dots, dots]
