"""Completion, in real shells where they are installed."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.conftest import PATIENCE, WAIT

from flux_endpoint.processes import is_readable

HERE = Path(sys.executable).parent


def needs(shell):
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"there is no '{shell}' on PATH")


@pytest.fixture
def user(bare):
    """A terminal on which `flux-endpoint` is on PATH."""
    bare.environment["PATH"] = f"{HERE}{os.pathsep}{bare.environment['PATH']}"
    return bare


class Typist:
    """A shell on a terminal of its own."""

    def __init__(self, command, environment):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            env={**environment, "TERM": "dumb", "PS1": "READY "},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, text):
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert is_readable(self.master, deadline - time.monotonic()), self.seen
            self.seen += os.read(self.master, 4096).decode(errors="replace")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.parametrize(
    ("shell", "files", "command"),
    [
        pytest.param("bash", ".rc", ["bash", "--rcfile", "{home}/.rc", "-i"], marks=needs("bash")),
        pytest.param("zsh", ".zshrc", ["zsh", "-i"], marks=needs("zsh")),
    ],
)
def test_a_tab_completes_commands_and_names_of_endpoints(user, shell, files, command):
    user.run("configure", "laboratory")
    start = {
        "bash": 'PS1="READY "',
        "zsh": 'autoload -Uz compinit; compinit -u -d "$ZDOTDIR/dump"; PS1="READY "',
    }[shell]
    (user.home / files).write_text(f'{start}\neval "$(flux-endpoint completion {shell})"\n')
    arguments = [part.format(home=user.home) for part in command]
    typist = Typist(arguments, {**user.environment, "ZDOTDIR": str(user.home)})
    try:
        typist.wait_for("READY ")
        typist.type("flux-endpoint completi\t")
        typist.wait_for("flux-endpoint completion ")
        typist.type("\x15flux-endpoint start lab\t")
        typist.wait_for("flux-endpoint start laboratory ")
    finally:
        typist.close()


@needs("fish")
def test_fish_completes_commands_names_and_options(user):
    user.run("configure", "laboratory")
    environment = {**user.environment, "HOME": str(user.home)}

    def completions(line):
        script = f'flux-endpoint completion fish | source; complete -C "{line}"'
        done = subprocess.run(
            ["fish", "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        return {each.split("\t")[0] for each in done.stdout.splitlines()}

    assert completions("flux-endpoint sta") == {"start", "status"}
    assert completions("flux-endpoint status lab") == {"laboratory"}
    assert "--state" in completions("flux-endpoint tasks --s")
    assert {"running", "failed"} <= completions("flux-endpoint tasks --state ")


def complete(terminal, line):
    """What the shell is told for the last word of a line."""
    variables = {
        "_FLUX_ENDPOINT_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    done = terminal.run(status=None, **variables)
    assert done.stderr == ""
    return {each.partition(",")[2] for each in done.stdout.splitlines()}


def test_the_first_word_is_a_command(bare):
    assert complete(bare, "flux-endpoint sta") == {"status", "start"}
    assert {"up", "doctor", "cancel"} <= complete(bare, "flux-endpoint ")
    assert complete(bare, "flux-endpoint --de") == {"--debug"}


@pytest.mark.parametrize("command", ["start", "stop", "status", "tasks", "attach", "logs"])
def test_endpoints_of_this_machine_are_completed(bare, command):
    bare.run("configure", "lab")
    bare.run("configure", "other")
    assert complete(bare, f"flux-endpoint {command} l") == {"lab"}


def test_a_tab_without_a_service_is_silent(bare):
    assert complete(bare, "flux-endpoint cancel ") == set()


@pytest.mark.rabbitmq
@pytest.mark.stack
def test_open_tasks_are_completed(stack, gate):
    with stack.executor() as executor:
        future = executor.submit(WAIT, gate=str(gate))
        task_id = future.wait_submitted(PATIENCE)
        assert complete(stack, f"flux-endpoint cancel {task_id[:-2]}") == {task_id}
        gate.touch()
        future.result(PATIENCE)


def test_the_shell_is_that_of_the_user_unless_named(bare):
    said = bare.out("completion", SHELL="/usr/bin/fish")
    assert said == bare.out("completion", "fish")
    assert "name the shell, bash, zsh, fish" in bare.err("completion", status=64, SHELL="/bin/sh")
    assert "'ksh' is not one of" in bare.err("completion", "ksh", status=64)
