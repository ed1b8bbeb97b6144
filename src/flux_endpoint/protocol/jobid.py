"""Flux job ids (RFC 19): 64-bit numbers made without asking anyone, and their printed forms."""

from __future__ import annotations

import os
import re
import threading
import time
from typing import Literal

Form = Literal["f58", "dec", "hex", "dothex", "kvs"]

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PREFIX = "ƒ"
_LIMIT = 1 << 64
_DOTHEX = re.compile(
    r"(?:job\.)?([0-9a-f]{4})\.([0-9a-f]{4})\.([0-9a-f]{4})\.([0-9a-f]{4})", re.IGNORECASE
)


def format_jobid(jobid: int, form: Form = "f58") -> str:
    """Return `jobid` as text, e.g. `ƒ2WXGLe` (f58, as Flux prints ids), `12345`, `0x3039`.

    Args:
        jobid: 0 to 2**64 - 1.
        form: `dothex` and `kvs` are four dotted groups of hexadecimal digits, `kvs` after `job.`.

    Raises:
        ValueError: the number is no job id.
    """
    if not 0 <= jobid < _LIMIT:
        raise ValueError(f"{jobid} is no job id: it must be between 0 and 2**64 - 1")
    match form:
        case "dec":
            return str(int(jobid))
        case "hex":
            return hex(jobid)
        case "dothex" | "kvs":
            digits = f"{jobid:016x}"
            dotted = ".".join(digits[at : at + 4] for at in range(0, 16, 4))
            return f"job.{dotted}" if form == "kvs" else dotted
    text = ""
    while True:
        jobid, digit = divmod(jobid, 58)
        text = _ALPHABET[digit] + text
        if not jobid:
            return _PREFIX + text


def parse_jobid(text: int | str) -> int:
    """Return the job id that `text` stands for, in any of its printed forms.

    `f58` may begin with a plain `f`, for keyboards and locales that have no `ƒ`. A number is taken
    as it is.

    Raises:
        ValueError: `text` is no job id; says which forms there are.
    """
    number = text if isinstance(text, int) else _parse(text.strip())
    if number is None or not 0 <= number < _LIMIT:
        raise ValueError(
            f"{text!r} is no job id; write it as Flux does (ƒ2WXGLe, or f2WXGLe), as a number, "
            "as 0x…, or as four dotted groups of hexadecimal digits; at most 64 bits"
        )
    return number


def _parse(text: str) -> int | None:
    if text.isascii() and text.isdecimal():
        return int(text)
    if re.fullmatch("0x[0-9a-f]+", text, re.IGNORECASE):
        return int(text, 16)
    if dotted := _DOTHEX.fullmatch(text):
        return int("".join(dotted.groups()), 16)
    if len(text) > 1 and text[0] in (_PREFIX, "f") and all(c in _ALPHABET for c in text[1:]):
        number = 0
        for character in text[1:]:
            number = number * 58 + _ALPHABET.index(character)
        return number
    return None


class JobID(int):
    """A job id that prints as Flux prints it, and is a number otherwise."""

    def __str__(self) -> str:
        return format_jobid(self)

    def __format__(self, specification: str) -> str:
        return format(int(self) if specification else str(self), specification)

    def __repr__(self) -> str:
        return f"JobID({int(self)})"


class JobIdGenerator:
    """Makes job ids: 40 bits of milliseconds, 14 of generator, 10 of sequence; always growing."""

    #: Milliseconds since the epoch that count as zero: 2020-01-01. 40 bits last until 2054.
    _ZERO = 1_577_836_800_000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generator = int.from_bytes(os.urandom(2), "big") & 0x3FFF
        self._last = (0, 0)  # milliseconds, sequence

    def next(self) -> JobID:
        """Return a new job id."""
        with self._lock:
            now, sequence = time.time_ns() // 1_000_000 - self._ZERO, 0
            if now <= self._last[0]:
                now, sequence = self._last[0], self._last[1] + 1
                if sequence == 1 << 10:  # more than fit in a millisecond, or a clock set back
                    now, sequence = now + 1, 0
            self._last = (now, sequence)
            number = (now & ((1 << 40) - 1)) << 24 | self._generator << 10 | sequence
            return JobID(number)
