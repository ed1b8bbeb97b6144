"""A task's own standard input, working directory and variables, on either executor."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from engine_world import World, buffer_of

from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_endpoint.protocol.run_options import RunOptions

ONE = {"num_ranks": 1}
TWO = {"num_nodes": 2, "ranks_per_node": 1}
#: Text that a quotation of shells or templates would change.
TEXT = "ä 'b' \"c\" {{id}} $HOME\n\\n\nend"
SHOW = ShellFunction("cat; echo; pwd -P; echo ${{OWN-none}} ${{LANG-unset}}")


@pytest.fixture(scope="module")
def one_worker(kind, tmp_path_factory):
    """An engine whose functions all run on one worker."""
    local = {"local_nodes": 2, "local_cores_per_node": 1} if kind == "local" else {}
    world = World(kind, tmp_path_factory.mktemp("endpoint"), max_workers=1, min_workers=1, **local)
    yield world
    world.stop()


def run(world: World, fn: Any, options: RunOptions, spec: Any = None, **kwargs: Any) -> Any:
    buffer = buffer_of(fn, **kwargs)
    return world.end(world.submit_buffer(buffer, spec, options=options))


def observe():
    import os
    import subprocess
    import sys
    from pathlib import Path

    first = sys.stdin.readline()
    rest = sys.stdin.read()
    rest += subprocess.run("cat", check=True, capture_output=True, text=True).stdout
    names = ("OWN", "LANG")
    return first + rest, str(Path.cwd().resolve()), [os.environ.get(name) for name in names]


def leaves_input():
    """Read a part of the input, so that the rest is in the stream's buffer."""
    import sys

    return sys.stdin.readline()


def options_in(directory: Path, **more: Any) -> RunOptions:
    return RunOptions(cwd=str(directory), env={"OWN": "this task's", "LANG": None}, **more)


@pytest.mark.parametrize("spec", [None, ONE], ids=["worker", "job"])
def test_a_function_has_its_input_directory_and_variables(one_worker, tmp_path, spec):
    end = run(one_worker, observe, options_in(tmp_path, stdin=TEXT), spec)
    values = [end.value] if spec is None else end.value
    assert values == [(TEXT, str(tmp_path.resolve()), ["this task's", None])]


def test_nothing_of_them_reaches_the_next_task(one_worker, tmp_path):
    before = one_worker.call(observe).value
    assert before[0] == ""
    end = run(one_worker, leaves_input, options_in(tmp_path, stdin=TEXT))
    assert end.value == TEXT.splitlines(keepends=True)[0]
    assert one_worker.call(observe).value == before
    assert one_worker.call(ShellFunction("cat; pwd")).value.stdout == f"{before[1]}\n"


@pytest.mark.parametrize("spec", [None, ONE], ids=["worker", "job"])
def test_a_command_has_its_input_directory_and_variables(one_worker, tmp_path, spec):
    value = run(one_worker, SHOW, options_in(tmp_path, stdin=TEXT), spec).value
    assert value.stdout == f"{TEXT}\n{tmp_path.resolve()}\nthis task's unset\n"
    assert not list(tmp_path.iterdir())  # its output files are with those of other tasks


@pytest.mark.parametrize("spec", [None, ONE], ids=["worker", "job"])
def test_the_input_may_be_a_file(one_worker, tmp_path, spec):
    text = "large\n" * 100_000
    (tmp_path / "input").write_text(text)
    count = ShellFunction("wc -c", stdout="counted")
    options = RunOptions(stdin=PurePosixPath("input"), cwd=str(tmp_path))
    assert run(one_worker, count, options, spec).value.stdout == f"{len(text)}\n"
    assert (tmp_path / "counted").read_text() == f"{len(text)}\n"  # named by the command itself
    end = run(one_worker, observe, options, spec)
    assert (end.value if spec is None else end.value[0])[0] == text


@pytest.mark.parametrize("spec", [None, ONE], ids=["worker", "job"])
def test_a_relative_directory_is_below_the_tasks_own(one_worker, spec):
    value = run(one_worker, ShellFunction("pwd -P"), RunOptions(cwd="run/7"), spec).value
    own = one_worker.directory / one_worker.config.working_dir / "run" / "7"
    assert value.stdout == f"{own.resolve()}\n"


@pytest.mark.parametrize("spec", [None, ONE], ids=["worker", "job"])
def test_a_place_that_is_not_there_fails_the_task(one_worker, tmp_path, spec):
    for options, name in (
        (RunOptions(cwd=str(tmp_path / "nowhere")), "cwd"),
        (RunOptions(stdin=PurePosixPath(tmp_path / "nothing")), "stdin"),
        (RunOptions(stdin=PurePosixPath(tmp_path)), "stdin"),
    ):
        end = run(one_worker, SHOW, options, spec)
        assert f"{name} " in end.text
        assert str(tmp_path) in end.text
        assert "Traceback" not in end.text


def test_each_rank_has_the_whole_input(one_worker, tmp_path):
    options = options_in(tmp_path, stdin="a line\n")
    value = run(one_worker, MPIFunction("cat"), options, TWO).value
    assert value.stdout == "a line\n" * 2
    values = run(one_worker, observe, options, TWO).value
    assert [each[0] for each in values] == ["a line\n"] * 2


@pytest.mark.parametrize("kind", ["local"], indirect=True)  # a script takes long on Flux
def test_a_script_has_the_input_itself(one_worker, tmp_path):
    script = ShellFunction("read -r line; echo got $line; $PARSL_MPI_PREFIX true < /dev/null")
    value = run(one_worker, script, options_in(tmp_path, stdin="a line\n"), TWO).value
    assert value.stdout == "got a line\n"


def test_the_sandbox_of_a_task_stays_its_files_place(kind, make_world, tmp_path):
    world = make_world(tmp_path / "endpoint", run_in_sandbox=True)
    place = tmp_path / "place"
    place.mkdir()
    for spec in (None, ONE):
        value = run(world, SHOW, options_in(place, stdin="x"), spec).value
        assert value.stdout == f"x\n{place.resolve()}\nthis task's unset\n"
    assert not list(place.iterdir())


def test_options_travel_as_json():
    options = options_in(Path("/tmp"), stdin=PurePosixPath("/a/file"))
    assert json.loads(json.dumps(options.as_json())) == {
        "stdin": {"file": "/a/file"},
        "cwd": "/tmp",
        "env": {"LANG": None, "OWN": "this task's"},
    }
