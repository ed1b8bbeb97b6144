"""`flux-endpoint attach`, as a person and as a program sees it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid

import pytest
from tests.cli.conftest import COMMAND, PATIENCE, WAIT, configure

from flux_endpoint import ComputeFuture, ShellFunction
from flux_endpoint.cli import attach as module
from flux_endpoint.cli.targets import EndpointTarget
from flux_endpoint.client.job import JobEvent
from flux_endpoint.functions import ShellResult
from flux_endpoint.protocol.jobid import JobID, format_jobid, parse_jobid
from flux_endpoint.serialize import ComputeSerializer, PureSourceTextInspect
from foreground import interrupt

pytestmark = [pytest.mark.rabbitmq, pytest.mark.stack]


@pytest.fixture
def flux(in_flux, flux_uri):
    """Runs a command of Flux in the instance of the endpoint `fluxed`."""

    def run(*arguments):
        environment = {**in_flux.environment, "FLUX_URI": flux_uri}
        done = subprocess.run(
            ["flux", *arguments], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return run


@pytest.mark.flux
class TestFollowing:
    def test_a_job_is_followed_to_its_exit_code_and_output(self, in_flux, flux):
        jobid = flux("submit", "sh", "-c", "echo out; echo err >&2; exit 3")
        done = in_flux.run("attach", "fluxed", jobid, status=3)
        assert done.stdout == "out\n"
        first, *lines, end, error = done.stderr.splitlines()
        assert first.endswith(f" job {jobid}")
        names = [line.split()[1] for line in lines]
        assert names[0] == "submit"
        assert names.index("alloc") < names.index("start") < names.index("finish")
        assert names[-1] == "clean"
        assert any("status=768" in line for line in lines)
        assert (end, error) == (f"job {jobid} ended with exit code 3", "err")

    def test_the_end_of_what_a_job_wrote_to_files_is_shown(self, in_flux, flux, tmp_path):
        options = [f"--cwd={tmp_path}", "--output=out", f"--error={tmp_path}/err"]
        jobid = flux("submit", *options, "sh", "-c", "echo out; echo err >&2; exit 3")
        done = in_flux.run("attach", "fluxed", jobid, status=3)
        assert (done.stdout, done.stderr.splitlines()[-1]) == ("out\n", "err")

    def test_the_output_of_a_command_task_is_shown(self, in_flux):
        with in_flux.executor("fluxed", resource_specification={"num_ranks": 1}) as executor:
            future = executor.submit(ShellFunction("echo out; echo err >&2; exit 3"))
            assert future.result(PATIENCE).returncode == 3
        done = in_flux.run("attach", "fluxed", str(future.jobid()), status=3)
        assert (done.stdout, done.stderr.splitlines()[-1]) == ("out\n", "err")

    @pytest.mark.parametrize("form", ["f58", "f58plain", "dec", "hex", "dothex"])
    def test_the_id_is_taken_in_every_form_that_flux_has(self, in_flux, flux, form):
        jobid = flux("submit", "true")
        in_flux.run("attach", "fluxed", flux("job", "id", f"--to={form}", jobid))

    def test_a_job_that_a_signal_ends_has_128_and_the_signal(self, in_flux, flux):
        jobid = flux("submit", "sh", "-c", "kill -TERM $$")
        done = in_flux.run("attach", "fluxed", jobid, status=143)
        assert f"job {jobid} was ended by signal 15 (SIGTERM)" in done.stderr

    def test_a_job_that_is_cancelled_is_an_error(self, in_flux, flux):
        jobid = flux("submit", "--urgency=hold", "true")
        flux("cancel", jobid)
        said = in_flux.err("attach", "fluxed", jobid, status=1)
        assert f"job {jobid} can't be followed at endpoint fluxed" in said
        assert "TaskCancelled" in said or "cancel" in said

    def test_json_is_an_object_an_event_and_one_for_the_end(self, in_flux, flux):
        jobid = flux("submit", "sh", "-c", "echo out; echo err >&2; exit 4")
        done = in_flux.run("attach", "fluxed", jobid, "--json", status=4)
        *events, end = map(json.loads, done.stdout.splitlines())
        assert {"submit", "alloc", "start", "finish"} <= {each["event"] for each in events}
        assert all(set(each) == {"event", "timestamp", "context", "jobid", "jobid_f58"}
                   for each in events)  # fmt: skip
        assert end == {
            "end": {
                "exit_code": 4,
                "returncode": 4,
                "exception": "subprocess.CalledProcessError",
                "stdout": "out\n",
                "stderr": "err\n",
            },
            "jobid": parse_jobid(jobid),
            "jobid_f58": jobid,
        }
        assert done.stderr == ""

    def test_ctrl_c_ends_the_command_quietly_and_not_the_job(self, in_flux, flux):
        jobid = flux("submit", "sleep", "inf")
        process = subprocess.Popen(
            [*COMMAND, "attach", "fluxed", jobid],
            env=in_flux.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stderr:
            if " start" in line:
                break
        interrupt(process)
        assert process.communicate(timeout=PATIENCE) == ("", "")
        assert process.returncode == 130
        assert flux("jobs", "-no", "{status}", jobid) == "RUN"
        flux("cancel", jobid)

    def test_a_closed_output_pipe_is_not_an_error(self, in_flux, flux):
        jobid = flux("submit", "sh", "-c", "seq 100000")
        command = f"{' '.join(COMMAND)} attach fluxed {jobid} 2> {in_flux.home}/said | head -1"
        done = subprocess.run(
            ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"],
            env=in_flux.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(done.stdout.splitlines()) == 2
        assert done.stdout.splitlines()[-1] in {"0", "141"}
        assert "Traceback" not in (in_flux.home / "said").read_text()

    def test_an_unknown_job_is_66(self, in_flux):
        said = in_flux.err("attach", "fluxed", "ƒ2WXGLe", status=66)
        assert "endpoint fluxed knows no job ƒ2WXGLe" in said


def test_a_job_of_the_embedded_executor_can_be_followed(stack, gate):
    with stack.executor(resource_specification={"num_ranks": 1}) as executor:
        future = executor.submit(WAIT, gate=str(gate))
        jobid = future.jobid(PATIENCE)
        process = subprocess.Popen(
            [*COMMAND, "attach", "local", str(jobid)],
            env=stack.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stderr:
            if " start" in line:
                break
        gate.touch()
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert "ended with exit code 0" in said


def test_a_task_is_followed_by_its_own_id(stack):
    with stack.executor(resource_specification={"num_ranks": 1}) as executor:
        future = executor.submit(ShellFunction("exit 3"))
        assert future.result(PATIENCE).returncode == 3
        for arguments in ([future.task_id], ["local", future.task_id]):
            done = stack.run("attach", *arguments, status=3)
            assert f"job {format_jobid(future.jobid())} ended with exit code 3" in done.stderr
        executor.resource_specification = None
        on_worker = executor.submit(pow, 2, 5)
        assert on_worker.result(PATIENCE) == 32
        said = stack.err("attach", on_worker.task_id, status=66)
        assert f"task {on_worker.task_id} (pow) has no job; it has ended (success)" in said
    # Who follows a job has no work of its own.
    listed = stack.json("tasks")["tasks"]
    assert {each["task_id"] for each in listed} >= {future.task_id, on_worker.task_id}
    assert all(each["function_id"] for each in listed)
    followers = [
        each for each in stack.json("tasks", "--follows")["tasks"] if not each["function_id"]
    ]
    assert len(followers) >= 2
    assert all(each["submitted"] <= each["started"] <= each["stopped"] for each in followers)


def test_past_events_are_shown_in_order(capsys):
    names = ["submit", "depend", "priority", "alloc", "start", "finish", "release", "free", "clean"]
    future = ComputeFuture(str(uuid.uuid4()))
    told = [(7, JobEvent(name, float(at))) for at, name in enumerate(names)]
    future._job_record().add_events(told)
    future.set_result(ShellResult("", "", "", returncode=0))
    target = EndpointTarget("lab", None)
    assert module._follow(future, JobID(7), target, as_json=True) == 0
    *events, _end = map(json.loads, capsys.readouterr().out.splitlines())
    assert [each["event"] for each in events] == names


def test_attach_reports_that_it_waits_for_an_offline_endpoint(stack):
    configure(stack, "absent")
    stack.start("absent")
    stack.stop("absent")
    process = subprocess.Popen(
        [*COMMAND, "attach", "absent", "ƒ2WXGLe"],
        env=stack.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "is offline for" in (line := process.stderr.readline())
    assert "(stopped); this waits until it is back." in line
    interrupt(process)
    assert process.communicate(timeout=PATIENCE)[1] == ""
    assert process.returncode == 130


def test_wrong_arguments_are_refused_by_name(bare, stack):
    said = bare.err("attach", "lab", "no-job", status=64)
    assert "'no-job' is neither a task's id" in said
    assert "nor a job's, as `flux jobs` does" in said
    said = stack.err("attach", "ƒ2WXGLe", status=64)
    assert "at which endpoint is job ƒ2WXGLe? flux-endpoint attach ENDPOINT ƒ2WXGLe" in said
    for wrong in ([], ["lab", "1", "2"]):
        assert "name a task, or an endpoint and a job" in bare.err("attach", *wrong, status=64)
    nobody = str(uuid.uuid4())
    assert f"task {nobody} is unknown" in stack.err("attach", nobody, status=66)
    assert "no endpoint is called 'nowhere'" in stack.err("attach", "nowhere", "1", status=66)
    assert "no credentials" in bare.err("attach", "lab", "1", status=78)


def prints_at(gate, fails):
    import sys
    import time
    from pathlib import Path

    print("begun ä")
    print("warned", file=sys.stderr)
    deadline = time.monotonic() + 60
    while not Path(gate).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    print("done")
    print("rest", end="")
    if fails:
        raise ValueError("bad")


def test_the_output_of_a_running_function_is_followed(stack, executor, gate):
    # By its source: the endpoint does not have this module.
    executor.serializer = ComputeSerializer(strategy_code=PureSourceTextInspect())
    future = executor.submit(prints_at, str(gate), True)
    lines = future.output()
    assert next(lines, None) == "begun ä\n", future.exception()
    assert not future.done()
    process = subprocess.Popen(
        [*COMMAND, "attach", "-f", future.task_id],
        env=stack.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun ä\n"
    assert not future.done()
    gate.touch()
    out, err = process.communicate(timeout=PATIENCE)
    assert (out, process.returncode) == ("done\nrest", 1)
    assert err.splitlines() == ["warned", f"task {future.task_id} failed: ValueError: bad"]
    assert list(lines) == ["done\n", "rest"]
    assert future.stdout == "begun ä\ndone\nrest"

    async def warnings():
        return [line async for line in future.output("stderr")]

    assert asyncio.run(warnings()) == ["warned\n"]
    executor.serializer = ComputeSerializer()
    command = executor.submit(ShellFunction("echo out; echo err >&2; exit 3"))
    assert command.result().returncode == 3
    done = stack.run("attach", "--follow", command.task_id, status=3)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    shown = json.loads(
        stack.out("attach", "-f", "--json", command.task_id, status=3).splitlines()[0]
    )
    assert (shown["stream"], shown["begin"]) == ("stdout", 0)


@pytest.mark.parametrize("spec", [None, {"num_ranks": 1}], ids=["worker", "job"])
def test_the_output_of_a_running_command_is_followed(stack, executor, gate, spec):
    executor.resource_specification = spec
    waits = ShellFunction("echo begun; until [ -e {gate} ]; do sleep 0.05; done; seq 2000")
    future = executor.submit(waits, gate=str(gate))
    lines = future.output()
    assert next(lines, None) == "begun\n", future.exception()
    assert not future.done()
    gate.touch()
    assert list(lines) == [f"{number}\n" for number in range(1, 2001)]
    assert future.result(PATIENCE).stdout.startswith("1001\n")  # a ShellResult has a thousand lines


def test_following_needs_one_task(stack):
    assert "name one task to follow" in stack.err("attach", "-f", status=64)
    unknown = str(uuid.uuid4())
    assert "unknown" in stack.err("attach", "-f", unknown, status=66)
