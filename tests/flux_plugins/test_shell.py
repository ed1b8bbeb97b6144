"""The job shell's plugin: it prepares command tasks on a real Flux, by hand and for an engine."""

from __future__ import annotations

import re
import shutil
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from site_world import PLUGINS

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from engine_world import World, buffer_of

from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.jobs.plan import Planner
from flux_endpoint.engine.jobs.shell_plugin import ShellPlugin, find_shell_plugin
from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.functions import MPIFunction, ShellFunction

LUA = PLUGINS / "shell" / "flux-endpoint.lua"
SHOW = 'echo "$GC_TASK_UUID|$PARSL_MPI_PREFIX|$PARSL_NUM_RANKS|$PARSL_NUM_NODES|$PWD"'


@pytest.fixture(scope="module")
def uri(bare_site, start_instance):
    return start_instance(bare_site, size=2)


@pytest.mark.flux
class TestByHand:
    """`flux run -o flux-endpoint` gives a script what an endpoint gives it."""

    @pytest.fixture
    def run(self, bare_site, uri):
        def run(*options, fails=False):
            command = ["flux", "run", *options, "sh", "-c", SHOW]
            said = bare_site.run(
                *command, uri=uri, fails=fails, FLUX_SHELL_RC_PATH=str(PLUGINS / "shell")
            )
            return said if fails else said.splitlines()

        return run

    @pytest.mark.parametrize(
        ("shape", "launcher", "ranks", "nodes"),
        [
            (["-n1"], "flux run -n 1 -c 1", "1", ""),
            (["-n2", "-c1"], "flux run -n 2 -c 1", "2", ""),
            (["-n1", "-c2"], "flux run -n 1 -c 2", "1", ""),
            (["-N2", "-n2"], "flux run -n 2 -N 2 -c 1", "2", "2"),
            (["-N2", "-n3"], "flux run -n 3 -N 2 -c 1", "3", "2"),
        ],
    )
    def test_the_launcher_has_the_jobs_own_shape(self, run, shape, launcher, ranks, nodes):
        for line in run(*shape, "-oflux-endpoint"):
            assert line.split("|")[:4] == ["", launcher, ranks, nodes]

    def test_options_change_the_launcher(self, run):
        (line,) = run(
            "-n1", "-oflux-endpoint.task=t", "-oflux-endpoint.ranks=7",
            "-oflux-endpoint.launcher-options=--label-io",
        )  # fmt: skip
        assert line.startswith("t|flux run -n 7 -c 1 --label-io|7||")
        (line,) = run("-n1", "-oflux-endpoint.launcher=mpiexec")
        assert line.startswith("|mpiexec|1|")

    def test_a_sandbox_is_made_on_the_nodes_and_entered(self, run, tmp_path):
        sandbox = tmp_path / "not" / "yet"
        lines = run("-N2", "-n2", f"-oflux-endpoint.sandbox={sandbox}")
        assert [line.split("|")[4] for line in lines] == [str(sandbox)] * 2

    def test_a_sandbox_that_can_not_be_made_fails_the_job_with_the_reason(self, run, tmp_path):
        (tmp_path / "file").touch()
        said = run("-n1", f"-oflux-endpoint.sandbox={tmp_path / 'file' / 'below'}", fails=True)
        assert f"flux-endpoint: can't use the directory {tmp_path}/file/below: " in said

    def test_without_its_option_the_plugin_does_nothing(self, run, bare_site):
        assert run("-n1") == [f"||||{bare_site.directory}"]


class TestPlan:
    """What an engine leaves to the plugin."""

    @pytest.fixture
    def planner(self, tmp_path):
        settings = TaskSettings("e", str(tmp_path / "work"), True, None)
        return Planner("flux", tmp_path, settings, ShellPlugin(LUA))

    def request(self, planner, function, **spec):
        task_id = str(uuid.uuid4())
        plan = planner.plan(EngineTask(task_id, "f", buffer_of(function), spec))
        return task_id, plan.request

    def test_the_job_runs_the_command_itself_and_the_environment_is_the_shells(self, planner):
        task_id, request = self.request(planner, MPIFunction("app -i 3"), num_nodes=2)
        assert request.command == ["app", "-i", "3"]
        assert not [name for name in request.environment if name.startswith(("GC_", "PARSL_"))]
        assert request.shell_options["userrc"] == str(LUA)
        assert request.shell_options["flux-endpoint"] == {
            "task": task_id,
            "launcher": "",
            "ranks": 2,
            "sandbox": f"{planner.tasks.working_dir}/{task_id}",
        }

    def test_a_job_names_no_plugin_file_if_the_shell_loads_it(self, planner):
        _, request = self.request(
            replace(planner, shell_plugin=ShellPlugin()), ShellFunction("true"), num_ranks=1
        )
        assert "userrc" not in request.shell_options
        assert "flux-endpoint" in request.shell_options

    def test_a_job_with_a_file_of_its_own_keeps_that(self, planner):
        _, request = self.request(
            planner, ShellFunction("true"), num_ranks=1, shell_options={"userrc": "/mine.lua"}
        )
        assert "flux-endpoint" not in request.shell_options
        assert "GC_TASK_UUID" in request.environment


@pytest.mark.flux
class TestEngine:
    @pytest.fixture(params=[False, True], ids=["directory", "sandbox"])
    def worlds(self, uri, tmp_path, monkeypatch, request):
        """Two engines, one without the plugin."""
        monkeypatch.setenv("FLUX_URI", uri)
        config = {"run_in_sandbox": request.param, "min_nodes": 0, "max_nodes": 1}
        worlds = [
            World("flux", tmp_path / mode, shell_plugin=mode, **config)
            for mode in ("never", "always")
        ]
        yield worlds
        for world in worlds:
            world.stop()

    @pytest.mark.parametrize(
        ("function", "spec"),
        [
            (ShellFunction(SHOW), {"num_ranks": 1}),
            (ShellFunction(SHOW), {"num_nodes": 2, "launcher_options": "--label-io"}),
            (MPIFunction("printenv GC_TASK_UUID PARSL_NUM_RANKS"), {"num_nodes": 2}),
            (MPIFunction(f"true; {SHOW}; $PARSL_MPI_PREFIX pwd"), {"num_ranks": 2}),
        ],
        ids=["one rank", "script", "ranks", "launches itself"],
    )
    def test_a_task_has_the_same_environment_as_without_the_plugin(self, worlds, function, spec):
        found = []
        for world in worlds:
            task = world.submit(function, spec=spec)
            result = world.end(task).value
            assert result.returncode == 0, result.stderr
            assert task in result.stdout
            said = result.stdout.replace(task, "TASK").replace(str(world.directory), "DIRECTORY")
            said = re.sub(r"/\S+/jobtmp-[^/\s]+", "JOBTMP", said)
            found.append(sorted(said.splitlines()))  # ranks write when they like
        assert found[0] == found[1]


@pytest.mark.flux
def test_an_engine_finds_the_plugin_installed_by_the_site(bare_site, tmp_path, monkeypatch):
    default = Path(bare_site.run("flux", "config", "builtin", "shell_initrc").strip())
    (tmp_path / "lua.d").mkdir()
    shutil.copy(default, tmp_path / "initrc.lua")
    attribute = f"-Sconf.shell_initrc={tmp_path / 'initrc.lua'}"
    with bare_site.instance(options=[attribute]) as uri:
        monkeypatch.setenv("FLUX_URI", uri)
        assert find_shell_plugin("auto") is None
        assert find_shell_plugin("always") == ShellPlugin(LUA)
        shutil.copy(LUA, tmp_path / "lua.d")
        assert find_shell_plugin("auto") == find_shell_plugin("always") == ShellPlugin()
        assert find_shell_plugin("never") is None
        world = World("flux", tmp_path / "endpoint", min_nodes=0, max_nodes=1)
        try:
            end = world.call(ShellFunction("echo $PARSL_NUM_RANKS"), spec={"num_ranks": 1})
            assert end.value.stdout == "1\n"
        finally:
            world.stop()
