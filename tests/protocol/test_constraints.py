"""Constraints as text become the objects that Flux's own parser makes of them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.protocol.constraints import parse_constraints

HOST_A = {"hostlist": ["a"]}


@pytest.mark.parametrize(
    ("text", "constraint"),
    [
        ("amd", {"properties": ["amd"]}),
        ("amd,^slow", {"properties": ["amd", "^slow"]}),
        ("amd fast", {"properties": ["amd", "fast"]}),
        ("host:a,b", {"hostlist": ["a,b"]}),
        ("hosts:'n[1-3]'", {"hostlist": ["n[1-3]"]}),
        ("rank:0-3", {"ranks": ["0-3"]}),
        ("-a", {"not": [{"properties": ["a"]}]}),
        ("not (a or b)", {"not": [{"or": [{"properties": ["a"]}, {"properties": ["b"]}]}]}),
        ("a|b||c", {"or": [{"properties": [name]} for name in "abc"]}),
        (
            "rank:0 & host:a b",
            {"and": [{"ranks": ["0"]}, {"hostlist": ["a"]}, {"properties": ["b"]}]},
        ),
        ("other:x", {"other": ["x"]}),
    ],
)
def test_a_constraint_is_terms_that_are_joined(text, constraint):
    assert parse_constraints(text) == constraint


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "missing at its end"),
        ("a or", "missing at its end"),
        ("a and and b", "'and' is out of place"),
        ("(a", "not closed"),
        ("a)", "'\\)' is out of place"),
        ("-(a)", "'-' is out of place"),
        ("'a", "quote is not closed: 'a"),
        ("host:", "nothing comes after 'host:'"),
        ("f!:x", "'f!:' is no operator"),
        (":x", "no operator"),
    ],
)
def test_an_invalid_constraint_is_refused_with_the_reason(text, why):
    with pytest.raises(ValueError, match=why):
        parse_constraints(text)


PIECES = "a|b,c|host:x|rank:0-3|-|not|and|or|&&|(|)|(a or b)|host:|'q w'|foo:bar|f!:x|^a|nota|'"


@pytest.fixture(scope="module")
def of_flux(flux_module) -> Any:
    parser = importlib.import_module("flux.job._utils").MiniConstraintParser

    def parse(text: str) -> Any:
        try:
            return parser().parse(text)
        except Exception:
            return None

    return parse


@pytest.mark.flux
@given(st.lists(st.sampled_from([*PIECES.split("|"), "|", "||"]), max_size=8).map(" ".join))
def test_any_text_is_read_as_flux_reads_it(of_flux, text):
    try:
        ours: Any = parse_constraints(text)
    except ValueError:
        ours = None
    assert ours == of_flux(text)
