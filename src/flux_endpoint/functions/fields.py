"""Formats values into the fields of a command line.

Command lines are formatted as by `str.format`, with one additional conversion: `{x!q}` is the value
as one shell word, quoted as by `shlex.quote`.

Inside `quoting_fields()` every value is data: it is quoted for its place, and only accepted where
it is known to remain data (`functions.plain`).
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import shlex
import string
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flux_endpoint.functions.plain import FIELD, Takes, WordPlace, places

#: The largest width and precision of a format.
WIDEST = 65_536
#: The most characters of a formatted command line.
LONGEST = 1 << 24
#: Up to this many fields are formatted at once, without counting characters.
_FEW = 8

_number = re.compile(r"\d+")
#: Characters with no special meaning to a shell anywhere, quoted or not.
_HARMLESS = re.compile(r"[A-Za-z0-9_@%+=:,./-]*", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
#: The same without the character that sets a variable.
_WORD = re.compile(r"[A-Za-z0-9_@%+:,./-]*", re.ASCII)

#: The programs that were passed to the enclosing `quoting_fields()`.
_quoting: contextvars.ContextVar[frozenset[str] | None] = contextvars.ContextVar(
    "quoting", default=None
)


@contextlib.contextmanager
def quoting_fields(programs: Collection[str] = ()) -> Iterator[None]:
    """Quote every value that is formatted into a command line, in this context.

    Args:
        programs: programs that treat any argument as data, named as in command lines, besides the
            known ones.
    """
    token = _quoting.set(frozenset(programs))
    try:
        yield
    finally:
        _quoting.reset(token)


def is_quoting() -> bool:
    """Return whether the caller is inside `quoting_fields()`."""
    return _quoting.get() is not None


def format_fields(template: str, values: Mapping[str, Any]) -> str:
    """Return a command line with `values` in its fields.

    Raises:
        KeyError: a field has no value.
        IndexError: a field has no name.
        ValueError: the command line or a value can't be formatted, or a value is not known to
            remain data in its field.
    """
    programs = _quoting.get()
    if programs is not None:
        return _Quoting(template, programs).fill(template, values)
    if "!q" not in template and ":" not in template and template.count("{") <= _FEW:
        return template.format(**values)
    return _Formatter().fill(template, values)


class _Formatter(string.Formatter):
    """Adds `!q`, and limits the length of the result."""

    def fill(self, template: str, values: Mapping[str, Any]) -> str:
        """Return `template` with `values` in its fields."""
        parts: list[str] = []
        left = LONGEST
        for literal, name, spec, conversion in self.parse(template):
            parts.append(self.literal(literal))
            if name is not None:
                if not name or re.split(r"[.\[]", name)[0].isdecimal():
                    raise IndexError("a field without a name")
                value, _ = self.get_field(name, (), values)
                inner = _Formatter().vformat(spec or "", (), values)
                parts.append(self.field(name, value, conversion, inner))
                left -= len(parts[-1])
                if left < 0:
                    raise ValueError(f"it would be longer than {LONGEST} characters")
        return "".join(parts)

    def literal(self, text: str) -> str:
        """Return the text of a part between two fields."""
        return text

    def field(self, name: str, value: Any, conversion: str | None, spec: str) -> str:
        """Return the text of a field."""
        del name
        return self.format_field(self.convert_field(value, conversion), spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Return `value` converted by `!r`, `!s`, `!a` or `!q`."""
        if conversion == "q":
            return shlex.quote(str(value))
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        """Return `value` formatted with `format_spec`.

        Raises:
            ValueError: the format does not fit, or is far too wide.
        """
        for number in _number.findall(format_spec):
            if len(number) > len(str(WIDEST)) or int(number) > WIDEST:
                raise ValueError(
                    f"a field has at most {WIDEST} characters, the format {format_spec[:40]!r} "
                    "asks for more"
                )
        text: str = super().format_field(value, format_spec)
        return text


class _Quoting(_Formatter):
    """Quotes every value according to the place of its field.

    Args:
        template: the trusted command line.
        programs: as of `quoting_fields`.
    """

    def __init__(self, template: str, programs: Collection[str]) -> None:
        if FIELD in template:
            raise ValueError("the command has a null character in it")
        skeleton = "".join(
            literal + (FIELD if name is not None else "")
            for literal, name, _, _ in self.parse(template)
        )
        self._places = iter(places(skeleton, programs))
        #: Words that have nonempty values.
        self._filled: set[int] = set()

    def field(self, name: str, value: Any, conversion: str | None, spec: str) -> str:
        """Return the text of a field, quoted for its place."""
        place = next(self._places)
        kind = None if conversion == "q" else conversion
        text = self.format_field(self.convert_field(value, kind), spec)
        if not _is_taken(place, text, value):
            raise ValueError(f"the value of {{{name}}} {_refusal(place)}")
        begins = not place.is_led and place.word not in self._filled
        if text.startswith("-") and begins and place.may_be_option and not _NUMBER.fullmatch(text):
            raise ValueError(
                f"the value of {{{name}}} begins with '-', and the program could take it for an "
                f"option; if the function shall allow that, it has '-- ' before {{{name}}}, or the "
                "option's name: --option={value}"
            )
        if text:
            self._filled.add(place.word)
        if place.quote:  # close the quotes around the field, and reopen them
            # A backslash is unsafe: in some locales it is the second byte of a character.
            return text if _HARMLESS.fullmatch(text) else place.quote + _word(text) + place.quote
        return f"'{text}'" if place.needs_quotes and _HARMLESS.fullmatch(text) else _word(text)


def _word(text: str) -> str:
    return text if text and _HARMLESS.fullmatch(text) else shlex.quote(text)


def _is_taken(place: WordPlace, text: str, value: Any) -> bool:
    """Return whether a place accepts a value, whose formatted text is `text`."""
    if place.takes is Takes.TEXT:
        return True
    kind = {Takes.NUMBER: _NUMBER, Takes.WORD: _WORD}.get(place.takes)
    if kind is None:
        return False
    if isinstance(value, list | tuple) and text == str(value) and place.is_understood:
        return all(kind.fullmatch(str(item)) is not None for item in value)
    return kind.fullmatch(text) is not None


def _refusal(place: WordPlace) -> str:
    """Return a text that says what a place accepts, and why not more."""
    if place.takes is Takes.NOTHING:
        return f"can't be used: {place.why}; the command names its programs itself"
    if place.takes is Takes.NUMBER:
        return f"must be a number here: {place.why} (docs/commands.md has which commands take more)"
    return (
        "must be a plain word here, of letters, digits and _@%+:,./- only, or a list of such: "
        f"{place.why}"
    )
