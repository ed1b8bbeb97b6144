"""Every rule of a resource specification: what it derives, and what it refuses by which words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.protocol.resources import (
    ResourceSpecification,
    ResourceSpecificationError,
    parse_resources,
)


def test_an_empty_specification_is_one_rank_anywhere():
    assert parse_resources({}) == ResourceSpecification(num_ranks=1, num_nodes=None)


@pytest.mark.parametrize(
    ("given_counts", "ranks", "nodes", "per_node"),
    [
        ({"num_ranks": 5}, 5, None, None),
        ({"num_nodes": 3}, 3, 3, 1),
        ({"ranks_per_node": 4}, 4, 1, 4),
        ({"num_nodes": 2, "ranks_per_node": 3}, 6, 2, 3),
        ({"num_nodes": 2, "num_ranks": 6}, 6, 2, 3),
        ({"num_nodes": 2, "num_ranks": 5}, 5, 2, 3),
        ({"ranks_per_node": 3, "num_ranks": 6}, 6, 2, 3),
        ({"ranks_per_node": 3, "num_ranks": 7}, 7, 3, 3),
        ({"num_nodes": 2, "ranks_per_node": 3, "num_ranks": 6}, 6, 2, 3),
        ({"num_nodes": 2, "ranks_per_node": None, "num_ranks": None}, 2, 2, 1),
    ],
)
def test_the_counts_that_are_left_out_follow_from_the_others(given_counts, ranks, nodes, per_node):
    parsed = parse_resources(given_counts)
    assert (parsed.num_ranks, parsed.num_nodes, parsed.ranks_per_node) == (ranks, nodes, per_node)


counts = st.none() | st.integers(1, 50)


@given(nodes=counts, per_node=counts, ranks=counts)
def test_any_consistent_counts_give_every_node_a_rank_and_none_too_many(nodes, per_node, ranks):
    given_counts = {"num_nodes": nodes, "ranks_per_node": per_node, "num_ranks": ranks}
    try:
        parsed = parse_resources(given_counts)
    except ResourceSpecificationError:
        assert nodes is not None
        assert ranks is not None
        assert (nodes * per_node != ranks) if per_node else (ranks < nodes)
        return
    assert parsed.num_ranks == (ranks or parsed.num_ranks)
    assert parsed.num_nodes == (nodes or parsed.num_nodes)
    if parsed.num_nodes is not None:
        assert parsed.num_nodes <= parsed.num_ranks
        assert parsed.num_nodes * parsed.ranks_per_node >= parsed.num_ranks
    if per_node is not None:
        assert parsed.ranks_per_node <= per_node


@pytest.mark.parametrize(
    ("given_counts", "why"),
    [
        ({"num_nodes": 2, "ranks_per_node": 3, "num_ranks": 7}, "is 6, but num_ranks=7"),
        ({"num_nodes": 3, "num_ranks": 2}, "every node needs a rank"),
        ({"exclusive": True}, "exclusive needs num_nodes"),
        ({"exclusive": True, "num_ranks": 2}, "exclusive needs num_nodes"),
        ({"num_ranks": 4, "tasks_per_slot": 2}, "tasks_per_slot needs num_nodes"),
        (
            {"num_nodes": 2, "ranks_per_node": 3, "tasks_per_slot": 2},
            "tasks_per_slot=2 does not divide .* make num_ranks a multiple of 4",
        ),
        ({"num_nodes": 2, "num_ranks": 6, "tasks_per_slot": 2}, "num_ranks a multiple of 4"),
    ],
)
def test_counts_that_contradict_each_other_are_refused_with_the_contradiction(given_counts, why):
    with pytest.raises(ResourceSpecificationError, match=why):
        parse_resources(given_counts)


ACCEPTED = [
    ("tasks_per_slot", 1, 1),
    ("num_nodes", 1, 1),
    ("num_ranks", 7, 7),
    ("cores_per_rank", 4, 4),
    ("gpus_per_rank", 0, 0),
    ("walltime", "1.5h", 5400.0),
    ("walltime", 30, 30.0),
    ("walltime", 0, 0.0),
    ("walltime", "infinity", 0.0),
    ("queue", "debug", "debug"),
    ("bank", "physics", "physics"),
    ("urgency", 0, 0),
    ("urgency", 31, 31),
    ("environment", {"A": "1", "B": None}, {"A": "1", "B": None}),
    ("constraints", {"properties": ["gpu"]}, {"properties": ["gpu"]}),
    ("dependencies", "afterok:f1", ("afterok:f1",)),
    ("dependencies", ["afterok:f1", "afterany:f2"], ("afterok:f1", "afterany:f2")),
    ("dependencies", ("a:b:c",), ("a:b:c",)),
    ("dependencies", [], ()),
    ("dependencies", "singleton", ("singleton",)),
    ("constraints", "amd host:a,b", {"and": [{"properties": ["amd"]}, {"hostlist": ["a,b"]}]}),
    ("begin_time", "1970-01-01T00:00:01.5Z", 1.5),
    ("begin_time", 1.5, 1.5),
    ("begin_time", 0, 0.0),
    ("job_name", "relax", "relax"),
    ("shell_options", {"mpi": "none"}, {"mpi": "none"}),
    ("attributes", {"system.x": 1}, {"system.x": 1}),
    ("launcher_options", "-o verbose", "-o verbose"),
    ("worker_init", "module load gcc\n", "module load gcc\n"),
    ("python", "python3.12", "python3.12"),
]


@pytest.mark.parametrize(("key", "value", "parsed"), ACCEPTED)
def test_a_good_value_is_taken(key, value, parsed):
    assert getattr(parse_resources({key: value}), key) == parsed


def test_exclusive_nodes_are_taken_with_their_number():
    assert parse_resources({"exclusive": True, "num_nodes": 2}).exclusive
    assert parse_resources({"exclusive": True, "ranks_per_node": 2}).exclusive
    assert not parse_resources({"exclusive": False}).exclusive


COUNTS = ("num_nodes", "ranks_per_node", "num_ranks", "cores_per_rank", "tasks_per_slot")
TEXTS = ("queue", "bank", "job_name", "launcher_options", "worker_init", "python")
OBJECTS = ("constraints", "shell_options", "attributes")
REFUSED = [
    *((key, value) for key in COUNTS for value in (0, -1, 1.0, "2", True, [1])),
    ("tasks_per_slot", 4097),
    *(("gpus_per_rank", value) for value in (-1, 0.5, "1", False)),
    *(("urgency", value) for value in (-1, 32, 1.5, "high", True)),
    *(("exclusive", value) for value in (1, 0, "yes", "true", [])),
    *(("walltime", value) for value in ("soon", -1, "-5s", math.nan, True, [], "1:00")),
    *((key, value) for key in TEXTS for value in ("", 1, ["a"], True)),
    *(("worker_init", value) for value in ("x" * (32 * 1024 + 1), "a\0b")),
    *(("environment", value) for value in ("A=1", ["A"], {1: "x"}, {"A": 1}, {"A": True})),
    *((key, value) for key in OBJECTS for value in ("(", [], {1: 2})),
    *(
        ("begin_time", value)
        for value in (-1, "soon", "+", "+1x", True, [], math.nan, math.inf, 10**400)
    ),
    *(("constraints", value) for value in ("", "a or", "(a", "a)", "-(a)", "'a", "host:", "f!:x")),
    *(
        ("dependencies", value)
        for value in ("afterok", ":x", "afterany:", [1], {"a": "b"}, 5, [""])
    ),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_a_wrong_value_is_refused_with_its_key_the_rule_and_the_value(key, value):
    with pytest.raises(ResourceSpecificationError) as caught:
        parse_resources({key: value})
    text = str(caught.value)
    assert text.startswith(f"resource_specification: {key}")
    assert " must be " in text
    assert ", got " in text


def test_a_misspelt_key_gets_the_right_one():
    with pytest.raises(ResourceSpecificationError, match="'num_node'; did you mean 'num_nodes'"):
        parse_resources({"num_node": 2})


@pytest.mark.parametrize("key", ["zzz", 5, None])
def test_any_other_unknown_key_gets_the_list_of_the_known_ones(key):
    with pytest.raises(ResourceSpecificationError, match="known keys: num_nodes, ranks_per_node"):
        parse_resources({key: 1})


@pytest.mark.parametrize("specification", [None, "num_nodes=2", ["num_nodes"], 2])
def test_a_specification_that_is_no_dict_is_refused(specification):
    with pytest.raises(ResourceSpecificationError, match="must be a dict, got"):
        parse_resources(specification)


@pytest.mark.parametrize("key", [key for key, *_ in ACCEPTED] + ["exclusive", "ranks_per_node"])
def test_none_means_that_the_key_was_left_out(key):
    assert parse_resources({key: None}) == ResourceSpecification()


def test_a_parsed_specification_is_a_copy():
    environment = {"A": "1"}
    parsed = parse_resources({"environment": environment})
    environment["A"] = "2"
    assert parsed.environment == {"A": "1"}


def test_the_error_is_one_of_ours_and_a_value_error():
    assert issubclass(ResourceSpecificationError, FluxEndpointError)
    assert issubclass(ResourceSpecificationError, ValueError)


@pytest.mark.parametrize("variables", [{"A": "secret \udce9"}, {"A\udce9": "secret"}])
def test_a_variable_that_is_not_utf8_is_refused_by_its_name_without_its_value(variables):
    with pytest.raises(ResourceSpecificationError, match=r"environment\['A.*'\] must be") as raised:
        parse_resources({"environment": variables})

    assert "secret" not in str(raised.value)
