"""The last lines of a file, in bounded memory."""

from __future__ import annotations

import json
import os
import tempfile
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flux_endpoint.functions import ShellFunction, snippet
from flux_endpoint.functions.snippet import last_lines, snippet_limit
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES, carried_bytes
from flux_endpoint.serialize import ComputeSerializer, JSONData

PLENTY = 10**6


def tail(content, lines, limit=PLENTY, start=0):
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return last_lines(file.fileno(), start, lines, limit)


def expected(content, lines):
    text = content.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    rows = text.split("\n")
    kept = [row + "\n" for row in rows[:-1]] + ([rows[-1]] if rows[-1] else [])
    return "".join(kept[len(kept) - lines :] if lines < len(kept) else kept)


contents = st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"\r", "é".encode(), b"\xff", b"bc"]))


@given(contents.map(b"".join), st.integers(0, 5), st.sampled_from([1, 2, 3, 7, 64]))
@example(b"", 3, 1)
@example(b"no newline", 1, 3)
@example(b"\n\n\n", 2, 1)
def test_the_tail_has_the_last_lines_for_any_file_and_block_size(content, lines, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snippet, "_BLOCK", block)
        assert tail(content, lines) == expected(content, lines)


def test_the_tail_ignores_content_before_the_run():
    assert tail(b"old\nnew\n", 10, start=4) == "new\n"
    assert tail(b"old\nnew\n", 10, start=8) == ""
    assert tail(b"truncated\n", 10, start=500) == "truncated\n"


def test_zero_lines_return_no_text():
    assert tail(b"a\nb\n", 0) == ""


def test_invalid_utf8_is_replaced():
    assert tail(b"a\xffb\n", 5) == "a\ufffdb\n"


def test_a_character_cut_in_two_by_the_limit_is_left_out():
    text = tail("é".encode() + b"x" * 99, 5, limit=100)
    assert text == "x" * 98  # and two quotes, as JSON


@given(contents.map(b"".join), st.integers(0, 40))
def test_the_limit_holds_in_utf8_and_in_json(content, limit):
    text = tail(content, 100, limit)
    assert len(text.encode()) <= limit
    assert text == "" or len(json.dumps(text)) <= limit
    assert expected(content, 10**6).endswith(text)


def test_a_file_of_gigabytes_takes_neither_memory_nor_all_of_its_bytes():
    size = 2**36
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), size)
        os.pwrite(file.fileno(), b"\nlast\nlines\n", size)
        tracemalloc.start()
        try:
            text = last_lines(file.fileno(), 0, 2, 2**22)
            assert tracemalloc.get_traced_memory()[1] < 2**21
            assert last_lines(file.fileno(), 0, 3, 2**16)[-12:] == "\nlast\nlines\n"
            assert tracemalloc.get_traced_memory()[1] < 2**24
        finally:
            tracemalloc.stop()
    assert text == "last\nlines\n"


@pytest.mark.parametrize("fill", ["x", "\\000", "\\377", "\\303\\251"])
@pytest.mark.parametrize(("return_dict", "strategy"), [(False, None), (True, JSONData)])
def test_a_result_fits_the_limit_whatever_was_written(fill, return_dict, strategy):
    command = f"yes $'{fill}' | head -c 7000000 | tee /dev/stderr"
    if fill == "\\000":
        command = "head -c 7000000 /dev/zero | tee /dev/stderr"
    result = ShellFunction(command, return_dict=return_dict, snippet_lines=10**7)()
    streams = (
        [result["stdout"], result["stderr"]] if return_dict else [result.stdout, result.stderr]
    )
    assert all(len(stream) > 100_000 for stream in streams)
    serializer = ComputeSerializer(strategy_data=strategy)
    assert carried_bytes(serializer.serialize(result)) <= MAX_PAYLOAD_BYTES


def test_a_long_command_leaves_less_room_for_its_output():
    assert snippet_limit("x") < MAX_PAYLOAD_BYTES // 2
    assert snippet_limit("x" * 2**20) < snippet_limit("x") - 2**18
    assert snippet_limit("x" * MAX_PAYLOAD_BYTES) == 0
