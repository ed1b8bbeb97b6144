"""The size of a payload is the size of the value that it carries."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES, carried_bytes


@pytest.mark.parametrize("identifier", ["00\n", "01\n", "02\n", "03\n", "04\n"])
@given(value=st.binary(max_size=400))
@example(value=b"")
@example(value=b"x" * 57)
@example(value=b"x" * 58)
def test_base64_counts_with_the_bytes_that_it_decodes_to(identifier, value):
    assert carried_bytes(identifier + base64.encodebytes(value).decode()) == len(value)


@given(value=st.binary(max_size=400))
def test_base64_without_line_breaks_counts_the_same(value):
    assert carried_bytes("00\n" + base64.b64encode(value).decode()) == len(value)


def test_the_limit_itself_is_exact_to_the_byte():
    for size in (MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1):
        buffer = "00\n" + base64.encodebytes(b"x" * size).decode()
        assert carried_bytes(buffer) == size


@pytest.mark.parametrize("identifier", ["11\n", "st\n", "sd\n", "12\n", "fc\n", "??\n"])
def test_any_other_text_counts_with_its_characters(identifier):
    assert carried_bytes(identifier + "abcé\n=") == 3 + 6


@pytest.mark.parametrize("buffer", ["", "0", "00", "00\n", "00\n=", "00\n\n", "00\n=="])
def test_a_buffer_without_a_value_carries_nothing_or_its_few_characters(buffer):
    assert 0 <= carried_bytes(buffer) <= len(buffer)
