"""Packing: any texts come back as they were, and what is no packed buffer is explained."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.errors import DeserializationError
from flux_endpoint.serialize import ComputeSerializer, pack_buffers, unpack_buffers

buffers = st.lists(st.text() | st.text(alphabet="0123456789\n"))


def test_a_packed_buffer_is_each_length_and_text():
    assert pack_buffers(["01\nabc", "", "00\nx\n"]) == "6\n01\nabc0\n5\n00\nx\n"


def test_lengths_count_characters_and_not_bytes():
    assert pack_buffers(["äö😀"]) == "3\näö😀"


@given(buffers)
def test_packed_buffers_round_trip(texts):
    assert unpack_buffers(pack_buffers(texts)) == texts


@given(buffers, buffers)
def test_packed_buffers_can_be_concatenated(first, second):
    assert unpack_buffers(pack_buffers(first) + pack_buffers(second)) == first + second


def test_the_serializer_offers_the_same():
    assert ComputeSerializer.unpack_buffers(ComputeSerializer.pack_buffers(["a", "b"])) == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        ("5", "character 0 a length and a newline are expected, found '5'"),
        ("abc", "found 'abc'"),
        ("x\nabc", "a length"),
        ("-1\nabc", "found '-1"),
        ("+1\nabc", "a length"),
        ("1_0\nabcdefghijk", "a length"),
        ("\u0663\nabc", "a length"),
        ("\nabc", "a length"),
        ("4\nabc", "buffer 0 should have 4 characters, only 3 are left"),
        ("1\nab", "character 3 .*found 'b'"),
        ("1\na9\nb", "buffer 1 should have 9 characters, only 1 are left"),
        ("9" * 4000 + "\nabc", "a length"),
    ],
)
def test_a_malformed_one_is_refused_with_what_and_where(packed, why):
    with pytest.raises(DeserializationError, match=why):
        unpack_buffers(packed)


@given(st.text())
def test_any_text_is_unpacked_or_raises_our_error(text):
    with contextlib.suppress(DeserializationError):
        assert unpack_buffers(pack_buffers(unpack_buffers(text))) == unpack_buffers(text)
