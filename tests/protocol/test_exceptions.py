"""Built-in exceptions travel as data; nothing else is made of such data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flux_endpoint.protocol.exceptions import exception_from, exception_text


class OwnError(ValueError):
    pass


class TwoPartError(Exception):
    def __init__(self, place: str, number: int) -> None:
        super().__init__(f"{place}: {number}")


OWN = {f"{__name__}.OwnError": OwnError, f"{__name__}.TwoPartError": TwoPartError}


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("division by zero"),
        KeyError("name"),
        KeyError(3),
        ValueError(),
        ValueError("a", 1, None, 2.5, True),
        FileNotFoundError(2, "No such file or directory", "/x"),
        TimeoutError("late"),
    ],
)
def test_a_built_in_exception_is_the_same_again(error: Exception) -> None:
    again = exception_from(exception_text(error))
    assert again is not None
    assert (type(again), again.args, str(again)) == (type(error), error.args, str(error))
    assert getattr(again, "filename", None) == getattr(error, "filename", None)


@pytest.mark.parametrize(
    "error",
    [
        OwnError(object()),
        ValueError(object()),
        ValueError(float("nan")),
        ValueError("x" * 10_000),
        ValueError(10**5000),
        ValueError(*range(9)),
        SystemExit(1),
        KeyboardInterrupt(),
        ExceptionGroup("both", [ValueError()]),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
    ],
)
def test_others_are_not_described(error: BaseException) -> None:
    assert exception_text(error) is None


def test_an_exception_of_a_named_class_is_made_again_and_no_other() -> None:
    text = exception_text(OwnError("own", 3))
    assert exception_from(text) is None
    assert exception_from(text, {"OwnError": OwnError}) is None
    again = exception_from(text, OWN)
    assert (type(again), again.args) == (OwnError, ("own", 3))


def test_a_class_that_takes_other_arguments_is_not_made() -> None:
    assert exception_from(exception_text(TwoPartError("a", 1)), OWN) is None


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        "",
        "[]",
        "{",
        "[" * 8000,
        *(
            json.dumps({"type": name, "args": args})
            for name, args in [
                ("SystemExit", [1]),
                ("KeyboardInterrupt", []),
                ("BaseException", []),
                ("print", ["x"]),
                ("eval", ["1"]),
                ("open", ["/etc/passwd"]),
                ("OwnError", []),
                ("ValueError", [[1]]),
                ("ValueError", "x"),
                ("UnicodeDecodeError", ["x"]),
                ("UnicodeEncodeError", ["utf-8", "x", 10**30, 1, "bad"]),
                (["ValueError"], []),
            ]
        ),
    ],
)
def test_other_data_make_nothing(text: Any) -> None:
    assert exception_from(text) is None
