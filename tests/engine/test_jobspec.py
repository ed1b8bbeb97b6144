"""Jobspecs: each field of a request, as data and as a real Flux takes it."""

from __future__ import annotations

import json
import math
import subprocess

import pytest

from flux_endpoint.engine.jobspec import JobRequest, build_jobspec
from flux_endpoint.protocol.resources import parse_resources

NO_INPUT = {"stdin": {"type": "file", "path": "/dev/null"}, "batch-timeout": 0.001}


def built(given=None, **options):
    options = {"command": ["true"], "cwd": "/tmp", "environment": {"A": "1", "B": "2"}, **options}
    return build_jobspec(JobRequest(resources=parse_resources(given or {}), **options))


def system(given=None, **options):
    return built(given, **options)["attributes"]["system"]


def slot(count, cores=1, **more):
    within = [{"type": "core", "count": cores}]
    return {"type": "slot", "count": count, "label": "task", "with": within, **more}


def test_the_least_request():
    assert built() == {
        "version": 1,
        "resources": [slot(1)],
        "tasks": [{"command": ["true"], "slot": "task", "count": {"per_slot": 1}}],
        "attributes": {
            "system": {
                "duration": 0.0,
                "cwd": "/tmp",
                "environment": {"A": "1", "B": "2"},
                "shell": {"options": {"input": NO_INPUT}},
            }
        },
    }


@pytest.mark.parametrize(
    ("given", "resources", "count"),
    [
        ({"num_ranks": 3}, slot(3), {"per_slot": 1}),
        (
            {"num_nodes": 2, "ranks_per_node": 3},
            {"type": "node", "count": 2, "with": [slot(3)]},
            {"per_slot": 1},
        ),
        (
            {"num_nodes": 2, "num_ranks": 3},
            {"type": "node", "count": 2, "with": [slot(2)]},
            {"total": 3},
        ),
        (
            {"num_nodes": 1, "exclusive": True, "cores_per_rank": 4},
            {"type": "node", "count": 1, "with": [slot(1, 4)], "exclusive": True},
            {"per_slot": 1},
        ),
        (
            {"num_nodes": 2, "ranks_per_node": 4, "cores_per_rank": 3, "tasks_per_slot": 2},
            {"type": "node", "count": 2, "with": [slot(2, 3)]},
            {"total": 8},
        ),
    ],
)
def test_counts_become_nodes_slots_and_tasks(given, resources, count):
    jobspec = built(given)
    assert jobspec["resources"] == [resources]
    assert jobspec["tasks"][0]["count"] == count


def test_gpus_are_in_the_slot_only_if_wanted():
    [resources] = built({"gpus_per_rank": 2})["resources"]
    assert resources["with"] == [{"type": "core", "count": 1}, {"type": "gpu", "count": 2}]


def test_a_command_that_runs_once_is_one_task_of_the_whole_allocation():
    jobspec = built({"num_nodes": 2, "num_ranks": 3}, launch="once")
    assert jobspec["tasks"][0]["count"] == {"total": 1}


@pytest.mark.parametrize(("launch", "count"), [("once", {"total": 1}), ("node", {"per_slot": 1})])
def test_a_command_that_runs_once_has_no_tasks_that_share_slots(launch, count):
    jobspec = built({"ranks_per_node": 4, "tasks_per_slot": 4}, launch=launch)
    assert jobspec["resources"] == [{"type": "node", "count": 1, "with": [slot(1)]}]
    assert jobspec["tasks"][0]["count"] == count


def test_a_command_for_each_node():
    options = system({"num_nodes": 2}, launch="node")["shell"]["options"]
    assert options["per-resource"] == {"type": "node"}


def test_a_script_is_a_file_of_the_job_and_its_path_the_last_word():
    jobspec = built(command=["flux", "broker"], script="echo", files={"more": "x"})
    assert jobspec["tasks"][0]["command"] == ["flux", "broker", "{{tmpdir}}/script"]
    files = jobspec["attributes"]["system"]["files"]
    assert {name: file["data"] for name, file in files.items()} == {"script": "echo", "more": "x"}


def test_words_that_flux_would_fill_in_are_in_a_file():
    jobspec = built(command=["app", "{{id}}", "it's"])
    assert jobspec["tasks"][0]["command"] == ["/bin/sh", "{{tmpdir}}/script"]
    [script] = jobspec["attributes"]["system"]["files"].values()
    assert script["data"] == "exec app '{{id}}' 'it'\"'\"'s'\n"


def test_the_environment_is_changed_by_the_specification():
    given = {"environment": {"A": None, "B": "3", "C": "4"}}
    assert system(given)["environment"] == {"B": "3", "C": "4"}


def test_times_queue_bank_name_constraints_and_dependencies():
    given = {
        "walltime": "1.5m",
        "queue": "debug",
        "bank": "physics",
        "job_name": "mine",
        "constraints": {"properties": ["amd"]},
        "dependencies": ["afterok:f2ByGc", "afterany:1:2"],
        "begin_time": 5,
    }
    found = system(given)
    assert found["duration"] == 90.0
    assert (found["queue"], found["bank"]) == ("debug", "physics")
    assert found["job"] == {"name": "mine"}
    assert found["constraints"] == {"properties": ["amd"]}
    assert found["dependencies"] == [
        {"scheme": "afterok", "value": "f2ByGc"},
        {"scheme": "afterany", "value": "1:2"},
        {"scheme": "begin-time", "value": "5.0"},
    ]


def test_options_that_are_not_given_are_absent():
    absent = {"queue", "bank", "constraints", "dependencies", "files", "job"}
    assert not absent & system().keys()


def test_attributes_go_where_flux_run_puts_them():
    jobspec = built({"attributes": {"user.a.b": 1, "c": 2, "system.d": [3]}})
    assert jobspec["attributes"]["user"] == {"a": {"b": 1}}
    assert jobspec["attributes"]["system"]["c"] == 2
    assert jobspec["attributes"]["system"]["d"] == [3]


def test_output_files():
    output = system(stdout="/o", stderr="/e", append=True)["shell"]["options"]["output"]
    assert output == {
        "stdout": {"type": "file", "path": "/o"},
        "stderr": {"type": "file", "path": "/e"},
        "mode": "append",
    }


def test_the_specifications_shell_options_win():
    given = {"shell_options": {"mpi": "intel", "output": {"batch-timeout": 1}, "input": {}}}
    options = system(given, shell_options={"mpi": "none", "x": 1}, stdout="/o")["shell"]["options"]
    assert (options["mpi"], options["x"]) == ("intel", 1)
    assert options["output"] == {"stdout": {"type": "file", "path": "/o"}, "batch-timeout": 1}
    assert options["input"] == {}


def test_files_are_executable():
    assert system(files={"script": "#!/bin/sh\n"})["files"] == {
        "script": {"mode": 0o100700, "data": "#!/bin/sh\n", "encoding": "utf-8"}
    }


def test_building_a_jobspec_changes_nothing_that_it_was_given():
    given = {"attributes": {"user.a": 1, "shell.options.x": 1}, "shell_options": {"y": 2}}
    assert built(given) == built(given)
    assert given["shell_options"] == {"y": 2}


REQUESTS = [
    ({}, {}),
    ({"num_ranks": 3, "cores_per_rank": 2}, {}),
    ({"num_nodes": 2, "ranks_per_node": 2}, {}),
    ({"num_nodes": 2, "num_ranks": 3}, {}),
    ({"num_nodes": 2, "ranks_per_node": 4, "tasks_per_slot": 2}, {}),
    ({"num_nodes": 2, "exclusive": True}, {}),
    ({"num_nodes": 2, "num_ranks": 3}, {"launch": "once"}),
    ({"num_nodes": 2}, {"launch": "node", "files": {"script": "true"}}),
    ({"walltime": 90, "job_name": "a name", "begin_time": 5}, {}),
    ({"constraints": {"not": [{"properties": ["none"]}]}, "attributes": {"user.x": [1]}}, {}),
    ({"environment": {"A": None, "Ü": "ü"}, "shell_options": {"verbose": 1}}, {}),
    ({}, {"stdout": "/tmp/{{id}}", "stderr": "/tmp/e", "append": True}),
]


@pytest.mark.flux
@pytest.mark.parametrize(("given", "options"), REQUESTS)
def test_flux_accepts_the_jobspec(flux_uri, flux_module, given, options):
    handle = flux_module.Flux(flux_uri)
    text = json.dumps(built(given, **options))
    assert not any(math.isinf(v) for v in [json.loads(text)["attributes"]["system"]["duration"]])
    jobid = flux_module.job.submit(handle, text, urgency=0)
    flux_module.job.cancel(handle, jobid)


@pytest.mark.flux
def test_flux_job_submit_reads_what_is_printed(flux_uri):
    text = json.dumps(built({"num_nodes": 1}))
    command = ["flux", "proxy", flux_uri, "flux", "job", "submit", "--urgency=0"]
    answer = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert answer.stdout.startswith(("ƒ", "f"))
    subprocess.run(["flux", "proxy", flux_uri, "flux", "cancel", answer.stdout.strip()], check=True)
