"""Flux job ids (RFC 19): 64-bit numbers that need no coordination, and their printed forms."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping
from typing import Literal

from flux_endpoint.protocol.jobid_tables import EMOJI, WORDS

Form = Literal["f58", "dec", "hex", "dothex", "kvs", "words", "emoji"]

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PREFIX = "ƒ"
_LIMIT = 1 << 64
#: An upper limit for the length of the longest form, six words.
_LONGEST = 128
#: Three words encode 32 bits.
_HALF = 1 << 32
_DOTHEX = re.compile(r"(?:job\.)?" + r"\.".join([r"([0-9a-f]{1,4})"] * 4), re.IGNORECASE)
#: Flux prints `x-x-x--x-x-x`; it accepts any separators that begin with a dash.
_WORDS = re.compile(r"[a-z]+(?:-+[a-z]+){5}", re.IGNORECASE)
_WORD_VALUES = {word: value for value, word in enumerate(WORDS)}
_F58_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_EMOJI_VALUES = {emoji: value for value, emoji in enumerate(EMOJI)}


def format_jobid(jobid: int, form: Form = "f58") -> str:
    """Return `jobid` as text, e.g. `ƒ2WXGLe` (f58, as Flux prints ids), `12345`, `0x3039`.

    Args:
        jobid: 0 to 2**64 - 1.
        form: `dothex` and `kvs` are four dotted groups of hexadecimal digits, `kvs` after `job.`;
            `words` are six words that are easy to say.

    Raises:
        ValueError: the number is not a job id.
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
        case "words":
            return "--".join(_three_words(half) for half in (jobid % _HALF, jobid // _HALF))
        case "emoji":
            return _digits(jobid, EMOJI)
    return _PREFIX + _digits(jobid, _ALPHABET)


def _digits(number: int, alphabet: str) -> str:
    text = ""
    while True:
        number, digit = divmod(number, len(alphabet))
        text = alphabet[digit] + text
        if not number:
            return text


def _three_words(half: int) -> str:
    base = len(WORDS)
    return "-".join(WORDS[half // base**place % base] for place in range(3))


def parse_jobid(text: int | str) -> int:
    """Return the job id in `text`, in any of its printed forms.

    `f58` may begin with a plain `f`, for keyboards and locales without `ƒ`. An integer is used as
    it is.

    Raises:
        ValueError: `text` is not a job id; the error lists the forms.
    """
    number: int | None = None
    if isinstance(text, int) and not isinstance(text, bool):
        number = text
    # Converting digits takes quadratic time, so limit their number.
    elif isinstance(text, str) and len(text) <= _LONGEST:
        number = _parse(text.strip())
    if number is None or not 0 <= number < _LIMIT:
        shown = f"{text[:_LONGEST]}…" if isinstance(text, str) and len(text) > _LONGEST else text
        raise ValueError(
            f"{shown!r} is no job id; write it as Flux does (ƒ2WXGLe, or f2WXGLe), as a number, "
            "as 0x…, as four dotted groups of hexadecimal digits, as six words or in emoji; at "
            "most 64 bits"
        )
    return number


def _parse(text: str) -> int | None:
    if text.isascii() and text.isdecimal():
        return int(text)
    if re.fullmatch("0x[0-9a-f]+", text, re.IGNORECASE):
        return int(text, 16)
    if dotted := _DOTHEX.fullmatch(text):
        return int("".join(group.zfill(4) for group in dotted.groups()), 16)
    if _WORDS.fullmatch(text):
        return _parse_words(re.findall("[a-z]+", text.lower()))
    if text[:1] in {_PREFIX, "f"}:
        return _number(text[1:], _F58_VALUES)
    return _number(text, _EMOJI_VALUES)


def _number(text: str, values: Mapping[str, int]) -> int | None:
    if not text or not all(character in values for character in text):
        return None
    number = 0
    for character in text:
        number = number * len(values) + values[character]
    return number


def _parse_words(words: list[str]) -> int | None:
    if not all(word in _WORD_VALUES for word in words):
        return None
    halves = []
    for at in (0, 3):
        first, second, third = (_WORD_VALUES[word] for word in words[at : at + 3])
        halves.append(first + len(WORDS) * (second + len(WORDS) * third))
    if max(halves) >= _HALF:  # some triples of words encode no 32-bit number
        return None
    return halves[0] + halves[1] * _HALF


class JobID(int):
    """A job id that prints like Flux's, and otherwise is an integer."""

    def __str__(self) -> str:
        return format_jobid(self)

    def __format__(self, specification: str) -> str:
        return format(int(self) if specification else str(self), specification)

    def __repr__(self) -> str:
        return f"JobID({int(self)})"


class JobIdGenerator:
    """Generates increasing job ids: 40 bits of milliseconds, 14 of generator, 10 of sequence."""

    #: The epoch, in milliseconds: 2020-01-01. 40 bits last until 2054.
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
                if sequence == 1 << 10:  # too many in a millisecond, or the clock was set back
                    now, sequence = now + 1, 0
            self._last = (now, sequence)
            number = (now & ((1 << 40) - 1)) << 24 | self._generator << 10 | sequence
            return JobID(number)
