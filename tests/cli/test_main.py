"""What holds for every command: help, mistakes, exit codes, bugs, closed pipes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import click
import pytest

from flux_endpoint.cli.exits import MEANINGS, ExitCode, exit_code_of
from flux_endpoint.cli.main import COMMANDS, cli
from flux_endpoint.cli.options import local_name
from flux_endpoint.errors import (
    AmqpError,
    BackgroundError,
    ConfigurationError,
    EngineError,
    FluxEndpointError,
    NotFoundError,
    ServiceError,
    ServiceUnreachableError,
    StillTryingError,
)

#: Runs the command line with one more command, which raises whatever its argument says.
WITH_A_BUG = """
import sys
from pathlib import Path
import click
from flux_endpoint.cli import main
from flux_endpoint.cli.main import COMMANDS, Entry

@click.command()
@click.argument("what")
def broken(what):
    raise eval(what)

sys.modules["flux_endpoint.cli.broken"] = sys.modules["__main__"]
COMMANDS["broken"] = Entry("broken:broken", "Break.")
main(sys.argv[1:])
"""


def run_with_a_bug(terminal, *arguments):
    return subprocess.run(
        [sys.executable, "-c", WITH_A_BUG, *arguments],
        env=terminal.environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_list_has_the_first_line_of_each_commands_help(name):
    command = cli.get_command(click.Context(cli), name)
    assert command.get_short_help_str(200) == COMMANDS[name].help


def test_help_lists_every_command(bare):
    said = bare.out("--help")
    assert said == bare.out("-h")
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", said, re.MULTILINE)


def test_without_a_command_the_help_is_shown(bare):
    assert bare.err(status=64) == bare.out("--help")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["strat"], "no command is called 'strat'; did you mean 'start'?"),
        (["frobnicate"], "no command is called 'frobnicate'; there are: up, down,"),
        (["list", "--jsn"], "No such option '--jsn'. Did you mean '--json'?"),
        (["start"], "Missing argument 'NAME'"),
        (["stop", "lab", "--timeout", "soon"], "'soon' is not a valid float"),
    ],
)
def test_a_wrong_command_line_is_64_and_says_what_is_wrong(bare, arguments, said):
    assert said in bare.err(*arguments, status=64)


def test_an_unknown_endpoint_is_66(bare):
    assert "no endpoint is called 'lab'; there are none yet" in bare.err("start", "lab", status=66)


def test_an_endpoint_of_this_machine_is_named_by_its_id(bare):
    bare.run("configure", "lab")
    directory = bare.home / "endpoints" / "lab"
    known, unknown = str(uuid.uuid4()), str(uuid.uuid4())
    (directory / "endpoint.json").write_text(json.dumps({"endpoint_id": known}))
    (directory / "endpoint.log").write_text("its line\n")
    assert bare.run("stop", known).stdout == "Endpoint lab was not running.\n"
    assert bare.run("logs", known).stdout == "its line\n"
    said = bare.err("stop", unknown, status=66)
    assert f"no endpoint of this machine has the id {unknown}; there are: lab" in said


@pytest.mark.parametrize("name", ["start", "stop", "restart", "render", "doctor"])
def test_commands_for_an_endpoint_of_this_machine_take_its_id(name):
    with click.Context(cli) as context:
        command = cli.get_command(context, name)
    assert command.params[0].callback is local_name


def test_a_missing_configuration_is_78(bare):
    bare.run("configure", "lab")
    assert "no credentials" in bare.err("start", "lab", status=78)


def test_a_start_in_the_background_fails_with_the_code_of_what_it_started(bare):
    bare.run("configure", "lab")
    assert "no credentials" in bare.err("start", "lab", "--detach", status=78)


def test_an_invalid_home_is_reported_in_one_sentence(bare, tmp_path):
    (tmp_path / "file").write_text("")
    home = str(tmp_path / "file" / "home")
    said = bare.err("configure", "lab", status=78, FLUX_ENDPOINT_HOME=home)
    assert said == (
        f"Error: can't use {home} (FLUX_ENDPOINT_HOME) as the state directory: Not a directory. "
        "Set FLUX_ENDPOINT_HOME to a directory of yours\n"
    )


def test_an_internal_error_exits_with_70_and_names_its_details_file(bare):
    done = run_with_a_bug(bare, "broken", "KeyError('a secret of the user')")
    assert done.returncode == 70
    assert "Traceback" not in done.stderr
    assert "`flux-endpoint broken` hit an internal error: KeyError" in done.stderr
    (file,) = bare.home.glob("*bugs*")
    assert f"The details are in {file}; please report it" in done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert "Traceback" in file.read_text()


def test_an_internal_error_without_a_home_is_still_reported(bare, tmp_path):
    (tmp_path / "file").write_text("")
    bare.environment |= {"FLUX_ENDPOINT_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    done = run_with_a_bug(bare, "broken", "ValueError()")
    (file,) = tmp_path.glob("*bugs*")
    assert (done.returncode, f"The details are in {file};" in done.stderr) == (70, True)


@pytest.mark.parametrize("place", [0, 1], ids=["before the command", "after it"])
def test_debug_shows_the_traceback(bare, place):
    arguments = ["broken", "ZeroDivisionError()"]
    arguments.insert(place, "--debug")
    done = run_with_a_bug(bare, *arguments)
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert list(bare.home.glob("*bugs*")) == []


def test_debug_shows_the_traceback_of_a_user_error(bare):
    done = run_with_a_bug(bare, "--debug", "start", "nowhere")
    assert done.returncode == 66
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: no endpoint is called 'nowhere'")


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["jobspec", "--", "true"]])
def test_a_closed_output_pipe_is_not_an_error(bare, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as output:
        done = subprocess.run(
            [sys.executable, "-m", "flux_endpoint", *arguments],
            env=bare.environment,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.stderr, done.returncode) == ("", 141)


def test_a_full_disk_is_reported_in_one_sentence(bare):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flux_endpoint", "list"],
            env=bare.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.stderr, done.returncode) == ("Error: No space left on device\n", 74)


def refusal(status, code="SOMETHING"):
    return ServiceError("no", http_status=status, code=code)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (click.UsageError("no"), ExitCode.USAGE),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        (FluxEndpointError("no"), ExitCode.FAILED),
        (NotFoundError("no"), ExitCode.NOT_FOUND),
        (ConfigurationError("no"), ExitCode.CONFIGURATION),
        (ServiceUnreachableError("no"), ExitCode.UNAVAILABLE),
        (StillTryingError("no"), ExitCode.UNAVAILABLE),
        (AmqpError("no"), ExitCode.UNAVAILABLE),
        (EngineError("no"), ExitCode.UNAVAILABLE),
        (refusal(401), ExitCode.PERMISSION),
        (refusal(403), ExitCode.PERMISSION),
        (refusal(404), ExitCode.NOT_FOUND),
        (refusal(404, "NOT_A_FLUX_ENDPOINT_SERVICE"), ExitCode.CONFIGURATION),
        (refusal(409), ExitCode.REFUSED),
        (refusal(429), ExitCode.UNAVAILABLE),
        (BackgroundError("no", exit_status=78), ExitCode.CONFIGURATION),
        (BackgroundError("no", exit_status=-9), ExitCode.FAILED),
        (PermissionError(), ExitCode.PERMISSION),
        (FileNotFoundError(), ExitCode.FILES),
        (BrokenPipeError(), ExitCode.CLOSED_PIPE),
        (AssertionError(), ExitCode.BUG),
    ],
    ids=str,
)
def test_each_error_has_its_exit_code(error, code):
    assert exit_code_of(error) is code


def test_every_exit_code_has_a_meaning():
    assert list(MEANINGS) == list(ExitCode)


def test_the_manual_has_the_same_table_of_exit_codes():
    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", manual, re.MULTILINE)
    assert rows == [(str(int(code)), meaning) for code, meaning in MEANINGS.items()]


def test_programs_run_in_utf8_mode_where_the_locale_is_another():
    code = (
        "import sys; from flux_endpoint.cli.main import _use_utf8; _use_utf8(); "
        "print(sys.getfilesystemencoding(), ascii(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "caf\u00e9", b"\xe9"],
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "utf-8 ['caf\\xe9', '\\udce9']\n"
