"""What the tasks of a job find: environment, directory, files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from worlds import PATIENCE, jobspec, shell, text

from flux_endpoint.protocol.jobid import format_jobid


def output_of(world, tmp_path: Path, script: str, **options: Any) -> list[str]:
    """The lines that the job's tasks printed, in any order."""
    out = {"output": {"stdout": {"type": "file", "path": str(tmp_path / "out")}}}
    system = {"shell": {"options": {**options.pop("shell_options", {}), **out}}}
    future = world.executor.submit(shell(script, **options, **system))
    assert future.result(PATIENCE) == 0
    lines = (tmp_path / "out").read_text().splitlines()
    return sorted(line.replace(format_jobid(future.jobid()), "JOBID") for line in lines)


def test_a_task_knows_its_place(world, tmp_path):
    script = "echo $FLUX_TASK_RANK $FLUX_TASK_LOCAL_ID $FLUX_JOB_SIZE $FLUX_JOB_NNODES $FLUX_JOB_ID"
    lines = output_of(world, tmp_path, script, nodes=2, slots=2)
    assert lines == ["0 0 4 2 JOBID", "1 1 4 2 JOBID", "2 0 4 2 JOBID", "3 1 4 2 JOBID"]


def test_a_total_of_tasks_is_spread_over_the_nodes(world, tmp_path):
    lines = output_of(
        world, tmp_path, "echo $FLUX_TASK_RANK $FLUX_TASK_LOCAL_ID", nodes=2, slots=2, total=3
    )
    assert lines == ["0 0", "1 1", "2 0"]


@pytest.mark.mpi
def test_the_tasks_of_a_job_are_ranks_of_one_mpi_program(world, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from mpi4py import MPI\nworld = MPI.COMM_WORLD\n"
        "print(world.rank, world.size, world.allreduce(world.rank + 1), flush=True)\n"
    )
    lines = output_of(world, tmp_path, f"exec {sys.executable} {program}", nodes=2, slots=2)
    assert lines == [f"{rank} 4 10" for rank in range(4)]


def test_tasks_by_resource(world, tmp_path):
    options = {"per-resource": {"type": "node"}}
    script = "echo $FLUX_TASK_RANK $FLUX_JOB_SIZE"
    lines = output_of(world, tmp_path, script, nodes=2, slots=2, shell_options=options)
    assert lines == ["0 2", "1 2"]


def test_a_task_has_the_environment_of_the_jobspec(world, tmp_path):
    lines = output_of(world, tmp_path, "echo $MINE", environment={"MINE": "yes, mine"})
    assert lines == ["yes, mine"]


def test_a_task_without_gpus_sees_none(world, tmp_path):
    assert output_of(world, tmp_path, "echo $CUDA_VISIBLE_DEVICES") == ["-1"]
    lines = output_of(world, tmp_path, "env", shell_options={"gpu-affinity": "off"})
    assert not [line for line in lines if line.startswith("CUDA_")]


def test_a_task_runs_in_its_directory(world, tmp_path):
    assert output_of(world, tmp_path, "pwd", cwd=str(tmp_path)) == [str(tmp_path)]


def test_a_directory_that_is_missing_becomes_tmp(world, tmp_path):
    assert output_of(world, tmp_path, "pwd", cwd="/no/such/directory") == ["/tmp"]


def test_a_job_has_a_temporary_directory_while_it_runs(world, tmp_path):
    (directory,) = output_of(world, tmp_path, "test -d $FLUX_JOB_TMPDIR && echo $FLUX_JOB_TMPDIR")
    assert not Path(directory).exists()


def test_templates_in_the_commands_words_are_filled_in(world, tmp_path):
    words = ["{{id}}", "{{size}}/{{name}}", "{{ id }}", "{{{{id}}}}", "{{idx}}", "}}", "{{no}}"]
    out = {"output": {"stdout": {"type": "file", "path": str(tmp_path / "out")}}}
    command = ["printf", "%s\n", *words]
    future = world.executor.submit(text(*command, shell={"options": out}))
    assert future.result(PATIENCE) == 0
    f58 = format_jobid(future.jobid())
    assert (tmp_path / "out").read_text().split("\n")[:-1] == [f58, "1/printf", *words[2:]]


def test_files_of_the_jobspec_are_in_the_temporary_directory(world, tmp_path):
    files = {
        "run": {"mode": 0o100700, "data": "#!/bin/sh\ncat $0.txt", "encoding": "utf-8"},
        "run.txt": {"mode": 0o100600, "data": "YsOpCg==", "encoding": "base64"},
    }
    out = {"output": {"stdout": {"type": "file", "path": str(tmp_path / "out")}}}
    spec = text("{{tmpdir}}/run", files=files, shell={"options": out})
    assert world.executor.submit(spec).result(PATIENCE) == 0
    assert (tmp_path / "out").read_text() == "bé\n"


def test_standard_input_comes_from_a_file(world, tmp_path):
    (tmp_path / "in").write_text("given")
    stdin = {"stdin": {"type": "file", "path": str(tmp_path / "in")}}
    assert output_of(world, tmp_path, "cat; echo", shell_options={"input": stdin}) == ["given"]


def test_output_goes_where_the_jobspec_says(world, tmp_path):
    options = {
        "output": {
            "stdout": {"type": "file", "path": "out-{{id}}"},
            "stderr": {"type": "file", "path": "err-{{id.dec}}"},
        }
    }
    spec = shell("echo said; echo meant >&2", cwd=str(tmp_path), shell={"options": options})
    future = world.executor.submit(spec)
    assert future.result(PATIENCE) == 0
    f58 = format_jobid(future.jobid())
    assert (tmp_path / f"out-{f58}").read_text() == "said\n"
    assert (tmp_path / f"err-{int(future.jobid())}").read_text() == "meant\n"


def test_standard_error_follows_standard_output(world, tmp_path):
    assert output_of(world, tmp_path, "echo said; echo meant >&2") == ["meant", "said"]


def test_a_file_for_each_task(world, tmp_path):
    path = str(tmp_path / "{{size}}-{{taskid}}-{{name}}")
    options = {"output": {"stdout": {"type": "file", "path": path}}}
    spec = shell("echo $FLUX_TASK_RANK", slots=2, shell={"options": options})
    assert world.executor.submit(spec).result(PATIENCE) == 0
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"2-0-sh": "0\n", "2-1-sh": "1\n"}


@pytest.mark.parametrize(("mode", "content"), [("truncate", "new\n"), ("append", "old\nnew\n")])
def test_a_file_that_exists(world, tmp_path, mode, content):
    (tmp_path / "out").write_text("old\n")
    stdout = {"type": "file", "path": str(tmp_path / "out")}
    spec = shell("echo new", shell={"options": {"output": {"mode": mode, "stdout": stdout}}})
    assert world.executor.submit(spec).result(PATIENCE) == 0
    assert (tmp_path / "out").read_text() == content


def test_unread_output_does_not_block_a_job(world):
    assert world.executor.submit(shell("seq 20000; seq 20000 >&2")).result(PATIENCE) == 0


def test_a_jobspec_object_is_taken_as_well_as_its_text(world):
    spec = jobspec("sh", "-c", "exit 9")
    assert world.executor.submit(world.jobspec_object(spec)).result(PATIENCE) == 9
    assert world.executor.submit(text("true").encode()).result(PATIENCE) == 0


def test_when_a_task_fails_the_others_may_be_ended_at_once(world):
    script = "test $FLUX_TASK_RANK = 0 && exit 3; exec sleep 60"
    spec = shell(script, slots=2, shell={"options": {"exit-on-error": 1}})
    exception = world.executor.submit(spec).exception(PATIENCE)
    assert exception.type == "exec"
    assert "exit-on-error is set" in exception.note


def test_when_a_task_ends_the_others_have_some_time(world):
    script = "test $FLUX_TASK_RANK = 0 && exit 0; exec sleep 60"
    spec = shell(script, slots=2, shell={"options": {"exit-timeout": "100ms"}})
    exception = world.executor.submit(spec).exception(PATIENCE)
    assert exception.type == "exec"
    assert "task rank 0 on host" in exception.note
    assert "has expired" in exception.note
