"""Putting values into the fields of a command line.

A command line is formatted as `str.format` does, with one conversion more: `{x!q}` is the value as
one word for the shell, quoted as `shlex.quote` does.

Inside of `quoting_fields()` every value is data: characters that a shell interprets are quoted to
fit the field's place, and refused where no quotes would help.
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import shlex
import string
from collections.abc import Iterator, Mapping
from typing import Any

#: The widest field, and the most digits of a number, that a format may ask for.
WIDEST = 65_536
#: The most characters of a formatted command line.
LONGEST = 1 << 24
#: Up to so many fields are formatted at once, without counting characters.
_FEW = 8

_number = re.compile(r"\d+")
#: Means the same to a shell wherever it stands, quoted or not.
_HARMLESS = re.compile(r"[A-Za-z0-9_@%+=:,./-]*", re.ASCII)
#: Command lines whose quotes can't be told by reading them once, or whose words are read again: by
#: a shell (arithmetic and the subscripts of arrays run what they name), by another language, or by
#: a program that runs them.
_INTERPRETED = re.compile(
    r"`|\$[({\['\"]|<<|\(\(|\[\[|\w\[|\}\["
    r"|\b(?:eval|trap|let|source|ssh|awk|sed|xargs|parallel|declare|typeset|local|export|readonly"
    r"|read|mapfile|readarray|getopts|unset|printf\s+-v|compgen|complete|enable|hash|alias|coproc"
    r"|su|watch|find|env|sudo|doas|make|PS[0-4]|PROMPT_COMMAND|BASH_ENV|ENV|IFS)\b"
    r"|(?:^|\s)\.\s|(?:^|[\s'\"])-[A-Za-z]*[cev]\b|--(?:command|eval|exec)\b"
)
_NEGATIVE_NUMBER = re.compile(r"-[0-9.][0-9.eE+-]*", re.ASCII)
#: Behind this word, programs take nothing for an option.
_NO_OPTIONS = re.compile(r"(?:^|\s)--\s+(?:['\"]?\0['\"]?\s+)*['\"]?$")
_BEFORE_A_WORD = frozenset(" \t\n;|&()<>")

_quoting: contextvars.ContextVar[bool] = contextvars.ContextVar("quoting", default=False)


@contextlib.contextmanager
def quoting_fields() -> Iterator[None]:
    """Meanwhile, in this context, every value that goes into a command line is quoted."""
    token = _quoting.set(True)
    try:
        yield
    finally:
        _quoting.reset(token)


def is_quoting() -> bool:
    """Return whether this is inside of `quoting_fields()`."""
    return _quoting.get()


def format_fields(template: str, values: Mapping[str, Any]) -> str:
    """Return a command line with `values` in its fields.

    Raises:
        KeyError: a field has no value.
        IndexError: a field has no name.
        ValueError: the command line or a value can't be formatted, or a value must be quoted and
            can't be.
    """
    if _quoting.get():
        return _Quoting(template).fill(template, values)
    if "!q" not in template and ":" not in template and template.count("{") <= _FEW:
        return template.format(**values)
    return _Formatter().fill(template, values)


class _Formatter(string.Formatter):
    """Knows `!q`, and does not fill the memory."""

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
        """Return a part of the command line between two fields."""
        return text

    def field(self, name: str, value: Any, conversion: str | None, spec: str) -> str:
        """Return the text of a field."""
        del name
        return self.format_field(self.convert_field(value, conversion), spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        """Return `value` as `!r`, `!s`, `!a` or `!q` have it."""
        if conversion == "q":
            return shlex.quote(str(value))
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        """Return `value` in a format.

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
    """Quotes every value, by the place of its field.

    Args:
        template: the command line, which is trusted.
    """

    def __init__(self, template: str) -> None:
        self._is_interpreted = _INTERPRETED.search(template) is not None
        self._place = _Place()

    def literal(self, text: str) -> str:
        """Return a part of the command line between two fields."""
        self._place.pass_over(text)
        return text

    def field(self, name: str, value: Any, conversion: str | None, spec: str) -> str:
        """Return the text of a field, quoted as its place needs it."""
        place = self._place
        kind = None if conversion == "q" else conversion
        text = self.format_field(self.convert_field(value, kind), spec)
        if text.startswith("-") and place.takes_options and not _NEGATIVE_NUMBER.fullmatch(text):
            raise ValueError(
                f"the value of {{{name}}} begins with '-', and the program could take it for an "
                f"option; if the function shall allow that, it has '-- ' before {{{name}}}, or the "
                "option's name: --option={value}"
            )
        quoted = self._quoted(name, text)
        place.pass_over_value(text)
        return quoted

    def _quoted(self, name: str, text: str) -> str:
        place = self._place
        assigns = "=" in text and place.begins_word  # a variable, unless it is quoted
        if _HARMLESS.fullmatch(text) and not (assigns and self._is_interpreted):
            is_word = not place.quote and not place.is_hidden and not self._is_interpreted
            return f"'{text}'" if is_word and (assigns or not text) else text
        if self._is_interpreted or place.is_hidden:
            raise ValueError(
                f"the value of {{{name}}} has characters that a shell could interpret, and can't "
                "be quoted where this command has it; letters, digits and _@%+=:,./- can be used "
                "there"
            )
        # Out of the quotes that the field stands in, and into them again. A backslash would not do:
        # in some locales it belongs to the character before it.
        return f"{place.quote}{shlex.quote(text)}{place.quote}"


#: Stands for a value in what was passed over: no command line has it.
_VALUE = "\0"


class _Place:
    """Where in a command line one is: in which quotes, in a comment, behind a backslash."""

    def __init__(self) -> None:
        #: The quotes that are open: `'`, `"` or none.
        self.quote = ""
        self._is_comment = False
        self._is_escaped = False
        #: Whether a word begins here, and whether it has had only quotes so far.
        self._begins_word = self._has_only_quotes = True
        self._passed = ""

    @property
    def is_hidden(self) -> bool:
        """Whether what comes next is not read as it stands: it is in a comment, or escaped."""
        return self._is_comment or self._is_escaped

    @property
    def begins_word(self) -> bool:
        """Whether nothing of a word has come but quotes."""
        return self._has_only_quotes

    @property
    def takes_options(self) -> bool:
        """Whether a program could take what comes next for an option."""
        return self._has_only_quotes and not _NO_OPTIONS.search(self._passed)

    def pass_over(self, text: str) -> None:
        """Read a part of the command line."""
        self._passed += text
        for character in text:
            self._step(character)

    def pass_over_value(self, value: str) -> None:
        """Read a value, which is quoted."""
        self._passed += _VALUE
        self._is_escaped = False
        self._begins_word = False
        self._has_only_quotes = self._has_only_quotes and not value

    def _step(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
            if character != "\n":  # that one is no character at all, with its backslash
                self._begins_word = self._has_only_quotes = False
            return
        if self._is_comment:
            self._is_comment = character != "\n"
        elif self.quote == "'":
            self.quote = "" if character == "'" else "'"
        elif character == "\\":
            self._is_escaped = True
            return
        elif self.quote == '"':
            self.quote = "" if character == '"' else '"'
        elif character in "'\"":
            self.quote = character
        elif character == "#" and self._begins_word:
            self._is_comment = True
        is_between = not self.quote and character in _BEFORE_A_WORD
        self._begins_word = is_between
        self._has_only_quotes = is_between or (self._has_only_quotes and character in "'\"")
