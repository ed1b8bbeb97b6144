"""Job ids print and parse as RFC 19 says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.protocol.jobid import JobID, JobIdGenerator, format_jobid, parse_jobid

FORMS = ("f58", "dec", "hex", "dothex", "kvs", "words", "emoji")
numbers = st.integers(min_value=0, max_value=2**64 - 1)


@pytest.mark.parametrize(
    ("jobid", "form", "text"),
    [
        (0, "f58", "ƒ1"),
        (57, "f58", "ƒz"),
        (58, "f58", "ƒ21"),
        (12345, "f58", "ƒ4fr"),
        (2**64 - 1, "f58", "ƒjpXCZedGfVQ"),
        (12345, "dec", "12345"),
        (12345, "hex", "0x3039"),
        (12345, "dothex", "0000.0000.0000.3039"),
        (12345, "kvs", "job.0000.0000.0000.3039"),
        # the first two are examples of RFC 19, the last is as Flux 0.88 prints it
        (6731191091817518, "f58", "ƒuZZybuNNy"),
        (6731191091817518, "words", "reform-remote-galileo--heart-package-academy"),
        (6731191091817518, "emoji", "👩💅📓😸👑🚓"),
    ],
)
def test_known_ids_are_formatted_and_parsed(jobid, form, text):
    assert format_jobid(jobid, form) == text
    assert parse_jobid(text) == jobid


@given(numbers, st.sampled_from(FORMS))
def test_every_form_is_read_back(jobid, form):
    assert parse_jobid(format_jobid(jobid, form)) == jobid


@given(numbers)
def test_f58_may_begin_with_a_plain_f(jobid):
    assert parse_jobid(format_jobid(jobid).replace("ƒ", "f")) == jobid


@pytest.mark.parametrize(
    ("text", "jobid"),
    [
        ("1.2.3.4", 0x0001_0002_0003_0004),
        ("  ƒ4fr\n", 12345),
        ("Reform-REMOTE-galileo-heart-package---academy", 6731191091817518),
    ],
)
def test_forms_that_flux_takes_without_printing_them_are_read(text, jobid):
    assert parse_jobid(text) == jobid


def test_a_number_is_taken_as_it_is():
    assert parse_jobid(12345) == 12345


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lunch",
        "ƒ",
        "ƒ0",
        "ƒIl",
        "0x",
        "-1",
        "1.5",
        "1.2.3",
        "1.2.3.12345",
        "reform-remote-galileo",
        "reform-remote-galileo--heart-package-supper",
        "yes-yes-yes--yes-yes-yes",
        "amen-amen-amen--academy-academy-academy",  # one of the triples that stand for nothing
        "😃🍟x",
        "18446744073709551616",
        "ƒzzzzzzzzzzzz",
    ],
)
def test_an_invalid_id_is_refused_with_the_valid_forms(text):
    with pytest.raises(ValueError, match="is no job id; write it as"):
        parse_jobid(text)


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_out_of_range_is_refused(number):
    with pytest.raises(ValueError, match="no job id"):
        format_jobid(number)
    with pytest.raises(ValueError, match="no job id"):
        parse_jobid(number)


def test_an_id_is_a_number_that_prints_as_flux_prints_it():
    jobid = JobID(12345)
    assert jobid == 12345
    assert str(jobid) == f"{jobid}" == "ƒ4fr"
    assert f"{jobid:d}" == "12345"
    assert json.dumps(jobid) == "12345"
    assert repr(jobid) == "JobID(12345)"


def test_new_ids_always_grow():
    generator = JobIdGenerator()
    ids = [generator.next() for _ in range(5000)]  # more than there are in a millisecond
    assert ids == sorted(set(ids))
    assert all(0 < jobid < 2**64 for jobid in ids)


@pytest.mark.parametrize("text", ["9" * 400_000, "0x" + "f" * 400_000, "ƒ" + "z" * 400_000])
def test_text_longer_than_any_job_id_is_refused_unread_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="is no job id") as caught:
        parse_jobid(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [None, 1.5, True, b"1", [1]])
def test_a_value_of_another_type_is_no_job_id(value: object) -> None:
    with pytest.raises(ValueError, match="is no job id"):
        parse_jobid(value)  # type: ignore[arg-type]
