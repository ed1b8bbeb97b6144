"""Types of fields whose values come from another party.

Each is bounded, so that no message or request can make a reader recurse too deeply, make a database
reject a value, or use an arbitrary amount of memory.
"""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

#: Deepest nesting of objects and arrays in a free-form field. JSON encoders and decoders recurse.
MAX_DEPTH = 32
#: The most values, including keys, of a free-form field.
MAX_VALUES = 20_000
#: The most characters in all texts of a free-form field.
MAX_CHARACTERS = 2**20

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

# Integers that 64-bit readers of JSON and all databases can hold.
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1


def bounded(value: Any, *, reported: bool = False) -> Any:
    """Return `value`, read from JSON, if it is within the bounds of a free-form field.

    Args:
        value: any value that `json.loads` returns.
        reported: whether it may have values that occur in reports but not in requests: lone
            surrogates, which UTF-8 can't express, and infinite numbers, which JSON can't express.

    Raises:
        ValueError: it nests too deeply, is too large, or contains a number or text that can't be
            stored.
    """
    values = characters = 0
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"nests deeper than {MAX_DEPTH} levels")
        values += len(level)
        if values > MAX_VALUES:
            raise ValueError(f"has more than {MAX_VALUES} values")
        below: list[Any] = []
        for each in level:
            if isinstance(each, str):
                characters += _length(each, surrogates=reported)
            elif isinstance(each, dict):
                below.extend(each)
                below.extend(each.values())
            elif isinstance(each, list):
                below.extend(each)
            elif isinstance(each, int) and not _MIN_INTEGER <= each <= _MAX_INTEGER:
                raise ValueError("has an integer of more than 64 bits")
            elif isinstance(each, float) and not (reported or math.isfinite(each)):
                raise ValueError(f"has the number {each}, which JSON can't express")
        if characters > MAX_CHARACTERS:
            raise ValueError(f"has more than {MAX_CHARACTERS} characters")
        level, depth = below, depth + 1
    return value


def readable(value: Any) -> Any:
    """Return `value`, read from JSON, with `?` for characters that must not be shown to people.

    These are lone surrogates, which UTF-8 lacks, and characters that control a terminal or the text
    direction; tabs and line ends stay. Numbers that JSON can't express become `None`, as pydantic
    writes them.
    """
    match value:
        case str():
            return _CONTROLS.sub("?", value.encode(errors="replace").decode())
        case dict():
            return {readable(key): readable(each) for key, each in value.items()}
        case list():
            return [readable(each) for each in value]
        case float() if not math.isfinite(value):
            return None
    return value


def _length(text: str, *, surrogates: bool) -> int:
    if not surrogates and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("has a lone surrogate, which is not valid Unicode") from None
    return len(text)


def _from_endpoint(value: Any) -> Any:
    # An endpoint's reports may quote any output of a program; they are written as ASCII.
    return bounded(value, reported=True)


def _of_task(value: Any) -> Any:
    size = len(json.dumps(bounded(value)))
    if size > MAX_TASK_OPTIONS:
        raise ValueError(
            f"takes {size} bytes as JSON, at most {MAX_TASK_OPTIONS} travel with a task: put "
            "large values into a file that the endpoint can read"
        )
    return value


#: The most bytes of a task's `resource_specification` as JSON. It travels in an AMQP header, and
#: all headers of a message must fit into one frame, by default 128 KiB (AMQP 0-9-1, 4.2.6).
MAX_TASK_OPTIONS = 48 * 2**10

#: A free-form JSON object in a request.
JsonObject = Annotated[dict[str, Any], AfterValidator(bounded)]
#: A free-form JSON object that travels with each task.
TaskOptions = Annotated[dict[str, Any], AfterValidator(_of_task)]
#: A free-form JSON object in an endpoint's message.
ReportedObject = Annotated[dict[Any, Any], AfterValidator(_from_endpoint)]

#: Limit of times in integer nanoseconds since the epoch, so that they fit into 64 bits.
MAX_NANOSECONDS = 2**63
#: Integer nanoseconds since the epoch.
Nanoseconds = Annotated[int, Field(ge=0, lt=MAX_NANOSECONDS)]
#: Seconds since the epoch, finite, until the year 9999.
Seconds = Annotated[float, Field(ge=0, lt=253_402_300_800, allow_inf_nan=False)]

#: Import paths of the strategies for a result; these travel in an AMQP header.
Strategies = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=256)]], Field(max_length=64)
]
#: A text for people.
Description = Annotated[str, Field(max_length=2**16), AfterValidator(bounded)]
