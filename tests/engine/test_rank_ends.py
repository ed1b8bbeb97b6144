"""How the ranks of a job end, and the other ranks with them: equal on both executors."""

from __future__ import annotations

import sys

import pytest
from engine_world import World, fresh_seconds, processes

from flux_endpoint.functions import MPIFunction, ShellFunction
from flux_endpoint.protocol.states import ErrorCode
from small_disk import SmallDisk
from waiting import until

ONE, TWO, THREE = ({"num_ranks": count} for count in (1, 2, 3))
ON_FLUX = pytest.mark.parametrize(
    "kind", [pytest.param("flux", marks=pytest.mark.flux)], indirect=True
)
FAILED = "subprocess.CalledProcessError"
#: The two ways in which a command runs on ranks.
WAYS = pytest.mark.parametrize("way", ["command", "script"])

pytestmark = pytest.mark.mpi


def command(way: str, text: str) -> MPIFunction:
    """A program on ranks: as the job's tasks, or started by a script."""
    return MPIFunction(text if way == "command" else f"true;\n$PARSL_MPI_PREFIX {text}")


def program(tmp_path, text: str) -> str:
    """A program in sh, in which `rank` is the rank's number."""
    path = tmp_path / "program.sh"
    path.write_text(f"rank=$FLUX_TASK_RANK\n{text}\n")
    return f"sh {path}"


def mpi_program(tmp_path, text: str) -> str:
    path = tmp_path / "program.py"
    path.write_text(f"import sys\nfrom mpi4py import MPI\nworld = MPI.COMM_WORLD\n{text}\n")
    return f"{sys.executable} {path}"


def are_gone(word: str) -> bool:
    return until(lambda: not processes(word))


def uneven(seconds):
    import os
    import time

    rank = int(os.environ["FLUX_TASK_RANK"])
    time.sleep(seconds * rank)
    return rank


@ON_FLUX
def test_ranks_may_end_more_than_30_seconds_apart(world: World, tmp_path):
    text = program(tmp_path, 'sleep "$((33 * rank))"; echo "rank $rank"')
    apart = [
        world.submit(uneven, 33, spec=TWO),
        world.submit(MPIFunction(text), spec=TWO),
        world.submit(command("script", text), spec=TWO),
    ]
    function, job, script = (end.value for end in world.ends(apart))
    assert function == [0, 1]
    for result in (job, script):
        assert result.returncode == 0
        assert sorted(result.stdout.splitlines()) == ["rank 0", "rank 1"]


@WAYS
def test_a_rank_that_fails_at_once_ends_the_others(world: World, tmp_path, way):
    seconds = fresh_seconds()
    text = f'echo "rank $rank"; [ "$rank" = 1 ] && exit 3; sleep {seconds}'
    result = world.call(command(way, program(tmp_path, text)), spec=THREE).value
    assert (result.returncode, result.exception_name) == (3, FAILED)
    assert "rank 1" in result.stdout
    assert are_gone(seconds)


@WAYS
def test_a_rank_that_is_killed_ends_the_others(world: World, tmp_path, way):
    seconds = fresh_seconds()
    text = f'echo "rank $rank"; [ "$rank" = 1 ] && kill -9 $$; sleep {seconds}'
    result = world.call(command(way, program(tmp_path, text)), spec=THREE).value
    # In a script, the shell that reads it gets to know of the rank's end.
    assert result.returncode == (-9 if way == "command" else 137)
    assert "rank 1" in result.stdout
    if way == "command":
        assert "killed by signal 9 (SIGKILL)" in result.stderr
    assert are_gone(seconds)


@WAYS
def test_an_abort_has_its_code_and_what_was_written_before(world: World, tmp_path, way):
    text = (
        "print('hello', flush=True); world.barrier()\n"
        "if world.rank == 1:\n"
        "    print('giving up', file=sys.stderr, flush=True); world.Abort(42)\n"
        "world.barrier()"
    )
    result = world.call(command(way, mpi_program(tmp_path, text)), spec=TWO).value
    assert result.stdout == "hello\n" * 2
    assert "giving up\n" in result.stderr
    if way == "command" or world.kind == "local":
        assert result.returncode == 42
    else:  # `flux run` does not know it
        assert result.returncode not in (0, None)


@WAYS
@pytest.mark.parametrize(("name", "code"), [("no-such-program", 127), ("/", 126)])
def test_a_program_that_cannot_be_started_is_named(world: World, way, name, code):
    result = world.call(command(way, name), spec=TWO).value
    assert result.returncode == code
    assert f" {name}: " in result.stderr


def aborts():
    import sys

    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        print("giving up", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(42)
    MPI.COMM_WORLD.barrier()


def dies(seconds):
    import os
    import time

    if os.environ["FLUX_TASK_RANK"] == "1":
        os.kill(os.getpid(), 9)
    time.sleep(seconds)


def fails_last(seconds):
    import os
    import time

    rank = int(os.environ["FLUX_TASK_RANK"])
    if rank == 1:
        time.sleep(2)
        raise ValueError("rank 1 can't")
    if rank == 2:
        time.sleep(seconds)


def test_a_functions_abort_is_reported_with_its_code(world: World):
    end = world.call(aborts, spec=TWO)
    assert end.code == ErrorCode.REMOTE_EXECUTION
    assert "return code 42" in end.text
    assert "giving up" in end.text


def test_a_function_that_is_killed_on_a_rank_says_by_what(world: World):
    end = world.call(dies, 600, spec=TWO)
    assert end.code == ErrorCode.REMOTE_EXECUTION
    assert "killed by signal 9 (SIGKILL)" in end.text


def test_a_function_that_fails_on_one_rank_ends_the_other_ranks(world: World):
    """Although another rank has ended well before: Flux itself looks at the first one only."""
    end = world.call(fails_last, 600, spec=THREE)
    assert "Exception on rank 1 of 3" in end.text
    assert "rank 1 can't" in end.text


def variables(*names):
    import os

    return [os.environ.get(name) for name in names]


def test_each_rank_has_its_number_in_fluxs_variables(world: World):
    result = world.call(MPIFunction("printenv FLUX_TASK_RANK"), spec=THREE).value
    assert sorted(result.stdout.splitlines()) == ["0", "1", "2"]
    result = world.call(command("script", "printenv FLUX_JOB_SIZE"), spec=THREE).value
    assert result.stdout == "3\n" * 3
    end = world.call(variables, "FLUX_TASK_RANK", "FLUX_JOB_SIZE", spec=TWO)
    assert end.value == [["0", "2"], ["1", "2"]]


@WAYS
@pytest.mark.parametrize(
    "environment",
    [{"TMPDIR": "/nonexistent"}, {"HOME": None}, {"LC_ALL": "C"}, {"X": "a\nb"}],
    ids=["TMPDIR", "HOME", "LC_ALL", "newline"],
)
def test_an_unusual_environment_affects_no_command(world: World, way, environment):
    spec = {**TWO, "environment": environment}
    result = world.call(command(way, "echo hi"), spec=spec).value
    assert (result.returncode, result.stdout) == (0, "hi\n" * 2), result.stderr


@WAYS
def test_a_command_without_path_runs_or_says_what_is_missing(world: World, way):
    spec = {**TWO, "environment": {"PATH": None}}
    result = world.call(command(way, "echo hi"), spec=spec).value
    if result.returncode == 0:
        assert result.stdout == "hi\n" * 2
    else:  # a script's ranks are started by `flux`
        assert result.returncode == 127
        assert "No such file or directory" in result.stderr


def test_a_script_without_a_first_line_runs_on_ranks(world: World, tmp_path):
    path = tmp_path / "plain"
    path.write_text("echo rank\n")
    path.chmod(0o700)
    assert world.call(MPIFunction(str(path)), spec=TWO).value.stdout == "rank\n" * 2


def test_output_that_cannot_be_written_is_refused_with_its_path(world: World, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path, file / "below"):
        end = world.call(ShellFunction("echo", stdout=str(path)), spec=ONE)
        assert end.code == ErrorCode.ENGINE_REFUSED
        assert f"standard output can't be written to {path}: " in end.text
        end = world.call(ShellFunction("echo", stderr=str(path)), spec=ONE)
        assert f"standard error can't be written to {path}: " in end.text


@pytest.mark.parametrize("spec", [{}, ONE, TWO])
def test_output_on_a_full_disk_is_reported_with_its_path(world: World, small_disk: SmallDisk, spec):
    small_disk.fill()
    path = small_disk.path / "output.txt"
    result = world.call(ShellFunction("seq 100000", stdout=str(path)), spec=spec).value
    assert f"{path}: No space left on device: the command's output" in result.stderr
    small_disk.clear()
    path.unlink()
    result = world.call(ShellFunction("echo hi", stdout=str(path)), spec=spec).value
    assert (result.returncode, result.stderr) == (0, "")


def test_a_command_longer_than_an_argument_runs(world: World):
    lines = "".join(f"file_{n:06}.dat\n" for n in range(20_000))
    for spec in (ONE, TWO):
        result = world.call(ShellFunction(f"wc -l <<'X'\n{lines}X\n"), spec=spec).value
        assert (result.returncode, result.stdout.strip()) == (0, "20000")


@ON_FLUX
def test_an_argument_that_is_too_long_is_the_commands_own_fault(make_world):
    world = make_world(max_retries_on_system_failure=2)
    task = world.submit(MPIFunction(f"echo {'x' * (1 << 17)}"), spec=TWO)
    result = world.end(task).value
    assert result.returncode == 126
    assert "Argument list too long" in result.stderr
    assert world.event_names(task).count("submit") == 1


@ON_FLUX
def test_a_job_exception_raised_by_a_user_is_reported_and_not_retried(make_world, flux_module):
    world = make_world(max_retries_on_system_failure=2)
    task = world.submit(ShellFunction(f"sleep {fresh_seconds()}"), spec=ONE)
    jobid = world.event(task, "start").jobid
    handle = flux_module.Flux(world.engine._backend.instance)
    payload = {"id": jobid, "type": "my-check", "severity": 0, "note": "no more of this"}
    handle.rpc("job-manager.raise", payload).get()
    end = world.end(task)
    assert end.code == ErrorCode.COULD_NOT_EXECUTE
    assert "an exception of type my-check: no more of this" in end.text
    assert world.event_names(task).count("submit") == 1
