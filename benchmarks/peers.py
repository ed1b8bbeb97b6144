"""The interpreters of the contenders: runs programs with them, and finds installed versions."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from flux_endpoint.stack.installation import find_rabbitmq

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "benchmarks" / "contenders"
#: The interpreter of this project, and that of its peers.
OURS = Path(sys.executable)
PEERS = ROOT / ".venv-peers" / "bin" / "python"
#: The interpreter with TaPS and this project, for applications of TaPS.
TAPS = ROOT / ".venv-taps" / "bin" / "python"
#: Timeout (s) of a turn.
TURN_TIMEOUT = 900.0
#: The most characters of a failed program's output that are shown.
_SHOWN = 1500
_PACKAGES = ("globus-compute-endpoint", "parsl", "executorlib", "distributed", "dill")
_NAMES = ("Globus Compute", "Parsl", "executorlib", "Dask", "their dill")


class ContenderError(Exception):
    """A program failed; the text has its exit status and the end of its output."""


@functools.cache
def flux_path() -> str:
    """Return the search path of Flux's Python bindings."""
    command = ["flux", "config", "builtin", "python_path"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def environment(python: Path, **more: str) -> dict[str, str]:
    """Return the environment of a program, without variables of other instances or services.

    Args:
        python: its interpreter; the interpreter's directory is the first on `PATH`.
        more: further variables.
    """
    dropped = ("FLUX_", "PMI_", "GLOBUS_", "PARSL_", "PYTHON", "FLUX_ENDPOINT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = f"{python.parent}:{kept['PATH']}"
    modules = f"{ROOT / 'benchmarks'}:{flux_path()}"
    return {**kept, "PATH": path, "PYTHONPATH": modules, **more}


def run_program(
    python: Path,
    program: str,
    counts: Mapping[str, int],
    options: Mapping[str, Any],
    variables: Mapping[str, str],
) -> Iterator[tuple[str, float]]:
    """Let a program of `contenders/` take its turn; yields rows and values.

    Args:
        python: the interpreter.
        program: its file name.
        counts: number of tasks by row; the program ignores rows that it does not know.
        options: options of the program, see `work.Turn`.
        variables: its environment.

    Raises:
        ContenderError: it failed; its values are discarded.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        answers, output = Path(name, "answers"), Path(name, "output")
        directory = Path(name, "directory")
        directory.mkdir()
        order = {
            "counts": dict(counts),
            "answers": str(answers),
            "directory": str(directory),
            "options": dict(options),
        }
        with output.open("wb") as file:
            process = subprocess.Popen(
                [python, PROGRAMS / program, json.dumps(order)],
                env=dict(variables),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            try:
                status: int | str = process.wait(TURN_TIMEOUT)
            except subprocess.TimeoutExpired:
                status = f"none after {TURN_TIMEOUT:.0f} s"
            finally:
                _end(process)
        if status != 0:
            said = output.read_text(errors="replace").strip()[-_SHOWN:]
            raise ContenderError(f"{program} ended with status {status}: {said}")
        for line in answers.read_text().splitlines():
            answer = json.loads(line)
            yield answer["row"], answer["value"]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a running program and its child processes."""
    if process.poll() is None:
        below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for child in below:
            if child.is_running():
                child.kill()


def versions() -> dict[str, str]:
    """Return the versions of the measured software and its dependencies, by name."""
    command = f"from importlib.metadata import version; print(*map(version, {_PACKAGES}))"
    answer = subprocess.run([PEERS, "-c", command], capture_output=True, text=True, check=True)
    flux = subprocess.run(["flux", "-V"], capture_output=True, text=True, check=True).stdout
    ctl: list[str | Path] = [find_rabbitmq().ctl, "version"]
    rabbitmq = subprocess.run(ctl, capture_output=True, text=True, check=True).stdout
    return {
        "this project": f"{version('flux-endpoint')} ({_commit()})",
        "Python": sys.version.split()[0],
        "Flux": flux.split("\n", maxsplit=1)[0].split()[-1],
        "RabbitMQ": rabbitmq.split()[-1],
        "dill": version("dill"),
        **dict(zip(_NAMES, answer.stdout.split(), strict=True)),
    }


def _commit() -> str:
    """Return the measured commit, and whether the source files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "src"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return commit + (" and changes" if changed else "")
