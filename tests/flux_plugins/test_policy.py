"""What a site allows endpoints' jobs: the rules alone, without Flux."""

from __future__ import annotations

import ast
import getpass
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from flux_endpoint.engine.jobspec import JobRequest, build_jobspec
from flux_endpoint.protocol.resources import parse_resources

PLUGINS = Path(__file__).parents[2] / "flux_plugins"
ME = os.getuid()


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("policy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


policy = load(PLUGINS / "ingest" / "policy.py")


def job(kind="task", **resources):
    mark = None if kind is None else {"endpoint": "e", "kind": kind}
    request = JobRequest(
        command=["true"],
        cwd="/",
        environment={},
        resources=parse_resources(resources),
        mark=mark,
    )
    return build_jobspec(request)


def rules(table):
    return policy.Policy({"flux-endpoint": table, "queues": {"batch": {}}})


def objections(table, jobspec):
    return rules({"tasks": table}).objections(jobspec, ME)


def completed(table, jobspec):
    rules(table).complete(jobspec, ME)
    return jobspec["attributes"]["system"]


TABLE = {"tasks": {"queue": "batch", "bank": "science", "duration": "30m"}}


class TestDefaults:
    def test_missing_options_of_a_job_get_the_sites_defaults(self):
        system = completed(TABLE, job())
        assert (system["queue"], system["bank"], system["duration"]) == ("batch", "science", 1800)

    def test_options_of_a_job_are_kept(self):
        system = completed(TABLE, job(queue="debug", bank="mine", walltime=60))
        assert (system["queue"], system["bank"], system["duration"]) == ("debug", "mine", 60)

    def test_workers_have_defaults_of_their_own(self):
        table = {**TABLE, "workers": {"queue": "resident"}}
        system = completed(table, job("workers"))
        assert (system["queue"], system["duration"]) == ("resident", 0)

    def test_a_job_that_comes_from_no_endpoint_is_left_as_it_is(self):
        assert completed(TABLE, job(None)) == job(None)["attributes"]["system"]

    def test_a_user_may_have_other_defaults(self):
        table = {**TABLE["tasks"], "users": {getpass.getuser(): {"bank": "hers"}}}
        system = completed({"tasks": table}, job())
        assert (system["queue"], system["bank"]) == ("batch", "hers")
        rest = {"tasks": {**TABLE["tasks"], "users": {"nobody else": {"bank": "his"}}}}
        assert completed(rest, job())["bank"] == "science"


class TestLimits:
    @pytest.mark.parametrize(
        ("table", "resources", "objection"),
        [
            ({"max-nodes": 4}, {"num_nodes": 5}, "at most 4 nodes, this one asks for 5"),
            ({"max-nodes": 1}, {"num_nodes": 2}, "at most 1 node, this one asks for 2"),
            ({"max-nodes": 4}, {"num_ranks": 5}, "the 5 ranks of this one may be spread"),
            (
                {"max-cores": 8},
                {"num_nodes": 2, "ranks_per_node": 2, "cores_per_rank": 3},
                "at most 8 cores, this one asks for 12",
            ),
            (
                {"max-duration": "2h"},
                {"walltime": "3h"},
                "a walltime of at most 2h, this one asks for 3h",
            ),
            ({"max-duration": "2h"}, {}, "a walltime of at most 2h, this one has none"),
            (
                {"queues": ["a", "b"]},
                {"queue": "c"},
                'only the queue a or b, this one asks for "c"',
            ),
            ({"queues": ["a"]}, {}, "only the queue a, this one names none"),
            ({"banks": []}, {"bank": "x"}, 'no bank, this one asks for "x"'),
        ],
    )
    def test_a_request_above_a_limit_is_refused_with_both_numbers(
        self, table, resources, objection
    ):
        (said,) = objections(table, job(**resources))
        assert objection in said

    @pytest.mark.parametrize(
        ("table", "resources"),
        [
            ({"max-nodes": 4}, {"num_nodes": 4}),
            ({"max-nodes": 4}, {"num_ranks": 4}),
            ({"max-cores": 12}, {"num_nodes": 2, "ranks_per_node": 2, "cores_per_rank": 3}),
            ({"max-duration": "2h"}, {"walltime": "120m"}),
            ({"max-duration": "infinity"}, {}),
            ({"queues": ["a"]}, {"queue": "a"}),
            ({"banks": []}, {}),
            ({}, {"num_nodes": 10_000}),
        ],
    )
    def test_a_request_within_the_limits_is_accepted(self, table, resources):
        assert objections(table, job(**resources)) == []

    def test_several_objections_are_one_sentence(self):
        found = objections({"max-nodes": 1, "max-duration": 60}, job(num_nodes=2))
        assert policy.sentence(found) == (
            "this site allows a job of an endpoint at most 1 node, this one asks for 2 (num_nodes);"
            " and a walltime of at most 1m, this one has none"
        )

    def test_a_job_that_comes_from_no_endpoint_passes(self):
        assert objections({"max-nodes": 1}, job(None, num_nodes=9)) == []

    def test_a_submission_can_not_set_the_mark(self):
        forged = job(num_nodes=9, attributes={"user.flux_endpoint": {"kind": "workers"}})
        assert objections({"max-nodes": 1}, forged) != []

    def test_a_users_own_limit_wins_by_name_and_by_number(self):
        for user in (getpass.getuser(), str(ME)):
            table = {"max-nodes": 1, "users": {user: {"max-nodes": 8}}}
            assert objections(table, job(num_nodes=8)) == []
            assert objections(table, job(num_nodes=9)) != []


class TestTable:
    @pytest.mark.parametrize(
        ("table", "problem"),
        [
            ({"tasks": {"max-node": 4}}, "tasks.max-node is unknown, did you mean max-nodes?"),
            ({"tasks": {"max-nodes": "4"}}, 'tasks.max-nodes must be a whole number, not "4"'),
            ({"tasks": {"duration": "soon"}}, "tasks.duration must be a duration such as"),
            ({"tasks": {"queues": "batch"}}, "tasks.queues must be a list"),
            ({"tasks": 4}, "tasks must be a table, not 4"),
            ({"task": {}}, "flux-endpoint.task is unknown, did you mean tasks?"),
            ({"tasks": {"users": {"a": {"x": 1}}}}, "tasks.users.a.x is unknown"),
        ],
    )
    def test_an_error_in_the_table_is_named(self, table, problem):
        with pytest.raises(ValueError, match="flux-endpoint") as caught:
            rules(table)
        assert problem in str(caught.value)

    def test_all_errors_in_the_table_are_named_together(self):
        with pytest.raises(ValueError, match=r"max-nodes .*; .*bank "):
            rules({"tasks": {"max-nodes": -1}, "workers": {"bank": 7}})

    def test_without_a_table_there_are_no_rules(self):
        assert policy.Policy({}).objections(job(num_nodes=99), ME) == []


@pytest.mark.parametrize(
    "path", sorted(PLUGINS.rglob("*.py")), ids=lambda path: str(path.relative_to(PLUGINS))
)
def test_files_that_flux_runs_have_the_syntax_of_old_pythons(path):
    ast.parse(path.read_text(), feature_version=(3, 6))
