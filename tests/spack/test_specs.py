"""The few rules of Spack's spec syntax and versions that the other tests stand on."""

import pytest

from spack_specs import meets, parse


@pytest.mark.parametrize(
    ("version", "ranges", "answer"),
    [
        ("3.11.2", "3.11:", True),
        ("3.10.20", "3.11:", False),
        ("3.13.13", "3.11:3.13", True),
        ("3.14.5", "3.11:3.13", False),
        ("3.2.13", "3.2", True),
        ("3.20", "3.2", False),
        ("0.3.10", "0.3.9:", True),
        ("4.1", ":4.1", True),
        ("4.1.2", ":4.1", True),
        ("4.2", ":4.1", False),
        ("main", "0.68:", True),
        ("main", ":4.1", False),
        ("1.5", "1.1,1.5", True),
        ("0", "", True),
    ],
)
def test_a_range_includes_its_ends_and_what_begins_like_the_upper_one(version, ranges, answer):
    assert meets(version, ranges) is answer


def test_a_spec_is_a_name_versions_variants_and_a_dependency():
    spec = parse("py-x@3.1: +c ~d backend=none ^python@:3.12")
    assert (spec.name, spec.versions) == ("py-x", "3.1:")
    assert spec.variants == {"c", "d", "backend"}
    assert spec.dependency == parse("python@:3.12")


def test_a_condition_needs_no_name():
    assert parse("@3.2.13 +c").versions == "3.2.13"
    assert parse("") == parse(" ")


@pytest.mark.parametrize("text", ["py-x@>=3", "py-x 3.1", "py-x@3.1:[c]"])
def test_an_invalid_spec_is_refused(text):
    with pytest.raises(ValueError, match="not a spec"):
        parse(text)
