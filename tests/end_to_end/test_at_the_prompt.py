"""What a person meets at a prompt or in a script: Ctrl-C, a REPL, and errors in plain words."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
import textwrap

import pytest

from flux_endpoint import Client, Executor, TaskExecutionFailed
from flux_endpoint.errors import ServiceError
from flux_endpoint.serialize import JSONData
from foreground import Process, interrupt
from waiting import until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.parametrize("stack", ["local"], indirect=True)]


@pytest.fixture
def home(stack, monkeypatch):
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(stack.home))
    return stack


@pytest.fixture
def executor(home):
    with Executor(home.endpoint_id) as executor:
        yield executor


class TestTheInterpreter:
    def repl(self, stack, text):
        return subprocess.run(
            [sys.executable, "-i", "-q"],
            input=textwrap.dedent(text),
            env={**stack.environment, "ENDPOINT": stack.endpoint_id},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def test_functions_defined_at_a_prompt_run(self, home):
        done = self.repl(
            home,
            """\
            import os
            from flux_endpoint import Executor
            ex = Executor(os.environ["ENDPOINT"])
            def triple(x):
                return 3 * x

            print("got", ex.submit(triple, 14).result(60))
            print("and", ex.submit(lambda x: x + 1, 6).result(60))
            """,
        )
        # Nothing shut the Executor down, and the interpreter ended all the same.
        assert "got 42\n" in done.stdout, done.stderr
        assert "and 7\n" in done.stdout
        assert done.returncode == 0
        assert "Traceback" not in done.stderr

    def test_a_notebooks_cell_runs(self, home, executor):
        # As a notebook does it: source compiled under a name of its own, in a module of its own.
        import linecache
        import types

        source = "def area(a, b=2):\n    import math\n    return math.prod((a, b))\n"
        name = "/tmp/ipykernel_1/1234567.py"
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        cell = types.ModuleType("__main__")
        exec(compile(source, name, "exec"), cell.__dict__)
        assert executor.submit(cell.area, 21).result(60) == 42

    def test_ctrl_c_while_waiting_leaves_the_executor_usable(self, home, tmp_path):
        script = tmp_path / "waits.py"
        gate = tmp_path / "gate"
        script.write_text(
            textwrap.dedent(
                f"""\
                import os, time
                from flux_endpoint import Executor

                def wait(path):
                    import os, time
                    while not os.path.exists(path):
                        time.sleep(0.01)
                    return "went on"

                ex = Executor(os.environ["ENDPOINT"])
                future = ex.submit(wait, {str(gate)!r})
                future.wait_submitted()
                try:
                    print("waiting", flush=True)
                    future.result()
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
                print(ex.submit(pow, 2, 5).result(60), flush=True)
                open({str(gate)!r}, "w").close()
                print(future.result(60), flush=True)
                """
            )
        )
        environment = {**home.environment, "ENDPOINT": home.endpoint_id}
        with Process(
            [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            interrupt(process)
            assert process.stdout.read() == "interrupted\n32\nwent on\n"
            assert process.wait(60) == 0


def test_the_workers_machine_describes_itself(executor):
    text = executor.get_worker_hardware_details()
    assert f"python: {sys.version.split()[0]}" in text
    task = executor.client.get_worker_hardware_details(executor.endpoint_id)
    assert task


class TestMessages:
    """Each says what was wrong and what to do."""

    def test_no_endpoint_id(self, home):
        with Executor() as executor, pytest.raises(ValueError, match="flux-endpoint list") as error:
            executor.submit(pow, 2, 3)
        assert "Executor(endpoint_id=...)" in str(error.value)

    def test_an_endpoint_that_is_offline_keeps_the_future_waiting_and_says_since_when(self, home):
        assert home.command("configure", "away").returncode == 0
        assert home.command("start", "away", "--detach").returncode == 0
        text = (home.home / "endpoints" / "away" / "endpoint.json").read_text()
        endpoint_id = json.loads(text)["endpoint_id"]
        assert home.command("stop", "away").returncode == 0
        with Executor(endpoint_id) as executor:
            future = executor.submit(pow, 2, 5)
            assert future.wait_submitted(60)
            with pytest.raises(concurrent.futures.TimeoutError):
                future.result(0)

            def was_there_and_is_gone() -> bool:
                status = executor.client.get_endpoint_status(endpoint_id)
                return status["last_seen"] and status["status"] == "offline"

            until(
                was_there_and_is_gone
            )  # its first word, and its last, take a while to the service
            assert home.command("start", "away", "--detach").returncode == 0
            assert future.result(60) == 32
        assert home.command("stop", "away").returncode == 0

    def test_a_function_that_is_not_importable_on_the_worker(self, executor, tmp_path, monkeypatch):
        (tmp_path / "only_here.py").write_text("def f():\n    return 1\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        import only_here

        with pytest.raises(TaskExecutionFailed) as error:
            executor.submit(only_here.f).result(60)
        text = str(error.value)
        assert "only_here" in text
        assert "install it there" in text
        assert "ComputeSerializer(modules=[…])" in text

    def test_a_result_that_no_strategy_accepts_lists_each_reason(self, executor):
        executor.result_serializers = [JSONData(), "globus_compute_sdk.serialize.DillDataBase64"]
        with pytest.raises(TaskExecutionFailed) as error:
            executor.submit(eval, "(n for n in range(3))").result(60)
        text = str(error.value)
        assert "All strategies failed" in text
        assert "JSONData" in text
        assert "DillDataBase64" in text
        assert "generator" in text

    def test_a_result_that_can_not_be_sent_says_so_in_its_first_line(self, executor):
        with pytest.raises(TaskExecutionFailed) as error:
            executor.submit(eval, "(n for n in range(3))").result(60)
        first, *rest = str(error.value).strip().splitlines()
        assert first.startswith("SerializationError: the function ran, but its result can't be")
        assert "'generator'" in first
        assert "cannot pickle 'generator' object" in rest[0]
        assert "make a list of it first" in rest[0]

    def test_a_result_that_is_too_large(self, executor):
        with pytest.raises(TaskExecutionFailed, match=r"MaxResultSizeExceeded\(\d+, 10485760\)"):
            executor.submit(bytes, 11 * 2**20).result(60)

    def test_a_task_group_of_another_user(self, home):
        database = f"sqlite:///{home.home}/stack/service.db"
        made = home.command(
            "service", "token", "create", "--database-url", database, "somebody-else"
        )
        assert made.returncode == 0, made.stderr
        with Executor(home.endpoint_id) as mine:
            mine.submit(pow, 2, 2).result(60)
            group = mine.task_group_id
        token = made.stdout.split()[-1]
        other = Client(home.credentials["service_url"], token)
        with Executor(client=other) as executor, pytest.raises(ServiceError) as error:
            executor.reload_tasks(group)
        assert str(group) in str(error.value)
