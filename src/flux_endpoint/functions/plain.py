"""The rules by which a value is known to be plain in a field of a command line.

This is an allowlist: a value is accepted because it is known what the shell and the programs do
with it. A command line that is not understood here only accepts numbers.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

#: Represents a field in the parsed command line; no command line contains this character.
FIELD: Final = "\0"


class Takes(enum.IntEnum):
    """The kinds of values that a place accepts; each level includes the previous ones."""

    NOTHING = 0
    NUMBER = 1
    #: Letters, digits and `_@%+:,./-`: a single word, however often it is parsed.
    WORD = 2
    TEXT = 3


@dataclass(frozen=True)
class WordPlace:
    """The position of a field.

    Attributes:
        takes: the most that it accepts.
        why: the reason why it accepts no more.
        quote: the enclosing quotes: `'`, `"` or none.
        word: the number of its word.
        is_led: whether literal text precedes it in its word.
        may_be_option: whether the program could take a value with a leading `-` for an option.
        needs_quotes: whether even a number must be quoted here.
        is_understood: whether the rest is known; otherwise nothing can be quoted here.
    """

    takes: Takes
    why: str = ""
    quote: str = ""
    word: int = 0
    is_led: bool = False
    may_be_option: bool = False
    needs_quotes: bool = False
    is_understood: bool = True


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Programs and builtins of bash for which every word that is not an option is data, never the name
#: of a program or an expression to run; with the options for which that holds.
_PLAIN: Final[dict[str, re.Pattern[str]]] = {
    **dict.fromkeys(
        _words(
            ": b2sum base32 base64 basename cat cd cksum cmp comm cp cut date df diff dirname du "
            "echo egrep expand expr false fgrep fmt fold grep head join ln ls md5sum mkdir mktemp "
            "mv nl od paste pwd readlink realpath rev rm rmdir seq sha1sum sha224sum sha256sum "
            "sha384sum sha512sum shuf sleep stat sum tac tail tee touch tr true uniq wc"
        ),
        re.compile(r"-.*", re.DOTALL),
    ),
    "sort": re.compile(r"-[^-].*|--", re.DOTALL),  # without --compress-program
    "printf": re.compile(r"--"),  # without -v
}
#: Builtins that prepare for later commands; their words must be literal.
_PREPARING: Final = _words("exit set ulimit umask wait")
#: Other builtins that do not parse their words again.
_READ_ONCE: Final = _words("[ test kill")
#: All builtins of bash 5.2 (`compgen -b`): they belong to the shell, so their words are not data.
_BUILTINS: Final = _words(
    ". : [ alias bg bind break builtin caller cd command compgen complete compopt continue "
    "declare dirs disown echo enable eval exec exit export false fc fg getopts hash help "
    "history jobs kill let local logout mapfile popd printf pushd pwd read readarray readonly "
    "return set shift shopt source suspend test times trap true type typeset ulimit umask "
    "unalias unset wait"
)
#: A command begins after these words; those of the next line end a command.
_BEFORE_A_COMMAND: Final = _words("{ ! if then elif else while until do time exec command")
_AFTER_COMMANDS: Final = _words("} fi done")
_OTHER_RESERVED: Final = _words("for case esac select function coproc in [[ ]]")

_PROGRAM = re.compile(r"[A-Za-z0-9_@%+:,./~$-]+|\[", re.ASCII)
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=", re.ASCII)
_VARIABLE = re.compile(
    r"\$(?:[A-Za-z_][A-Za-z0-9_]*|\{[A-Za-z_][A-Za-z0-9_]*\}|[0-9@*#?$!-])?", re.ASCII
)
#: Around a value in a word of an unknown program: rules out text in another language.
_NEIGHBOURS = re.compile(r"[A-Za-z0-9_@%+:,./~=$-]*", re.ASCII)
#: Special to bash in a word outside quotes.
_EXPANDS = re.compile(r"[][{}]")


class NotPlainError(Exception):
    """A command line is not understood; the text says from where on."""


def places(skeleton: str, programs: Collection[str] = ()) -> list[WordPlace]:
    """Return the places of a command line's fields, in order.

    Args:
        skeleton: the command line with `FIELD` for each field.
        programs: further programs that treat every word as data.
    """
    try:
        reader = _Reader(skeleton)
        reader.read()
    except NotPlainError as error:
        why = f"the command has {error}, and what becomes of a value then is not known"
        return [WordPlace(Takes.NUMBER, why, is_understood=False)] * skeleton.count(FIELD)
    unknown = reader.unknown(programs)
    if unknown is None:
        return reader.places
    why = (
        f"{unknown} is not known to take every text for data; if it does, the endpoint's owner "
        "can list it in plain_programs"
    )
    return [
        replace(place, takes=Takes.WORD, why=why)
        if place.takes is Takes.TEXT and reader.has_plain_neighbours(place)
        else replace(place, takes=Takes.NUMBER, why=f"it is a part of a text, and {why}")
        if place.takes is Takes.TEXT
        else place
        for place in reader.places
    ]


class _Word:
    """A word that is being read."""

    def __init__(self) -> None:
        #: Its characters without quotes, and its unquoted characters.
        self.text = ""
        self.bare = ""
        self.is_quoted = False
        #: The numbers of its fields, counted over the command line.
        self.fields: list[int] = []

    @property
    def is_led(self) -> bool:
        return bool(self.text.replace(FIELD, ""))


class _Reader:
    """Parses a command line as bash does, as far as it is plain (bash(1), SHELL GRAMMAR)."""

    def __init__(self, text: str) -> None:
        self.places: list[WordPlace] = []
        self._text = text
        self._at = 0
        self._word: _Word | None = None
        self._words: list[_Word] = []
        #: The program of the current command, once known, and its options.
        self._program: str | None = None
        self._commands: list[tuple[str, list[str], bool]] = []
        self._is_over = False
        self._redirects = False
        #: Whether the latest words were `--` and fields only.
        self._is_behind_dashes = False

    def read(self) -> None:
        """Parse the whole command line.

        Raises:
            NotPlainError: it contains something that is not understood here.
        """
        while self._at < len(self._text):
            self._step()
        self._end_command()

    def unknown(self, programs: Collection[str]) -> str | None:
        """Return the first program that is not known to treat every word as data."""
        for name, words, has_fields in self._commands:
            if name in programs or (name in _PREPARING and not has_fields):
                continue
            options = _PLAIN.get(name)
            if options is None:
                return name
            for word in words:
                if word.startswith("-") and not options.fullmatch(word):
                    return f"{name} {word.partition('=')[0].replace(FIELD, '…')}"
        return None

    def has_plain_neighbours(self, place: WordPlace) -> bool:
        """Return whether the word around a place only has plain text."""
        text = self._words[place.word].text.replace(FIELD, "")
        return _NEIGHBOURS.fullmatch(text) is not None

    def _step(self) -> None:
        character, after = self._text[self._at], self._text[self._at + 1 : self._at + 2]
        if character in " \t":
            self._end_word()
        elif character in "<>" or (character == "&" and after == ">"):
            self._redirection()
            return
        elif character in "\n;&|)":
            self._end_command()
        elif character == "(":
            if after == "(" or not self._begins_command():
                raise NotPlainError("'(('" if after == "(" else "'(' inside of a command")
        elif character == "#" and self._word is None:
            self._comment()
            return
        elif character == "\\":
            self._escape()
            return
        elif character in "'\"":
            self._quotes(character)
            return
        elif character == "$":
            self._variable(quote="")
            return
        elif character == FIELD:
            self._field("")
        elif character == "`":
            raise NotPlainError("a '`'")
        else:
            self._add(character, is_bare=True)
        self._at += 1

    def _begins_command(self) -> bool:
        return self._word is None and self._program is None and not self._redirects

    def _add(self, text: str, *, is_bare: bool) -> None:
        if self._word is None:
            self._word = _Word()
        self._word.text += text
        if is_bare:
            self._word.bare += text
        else:
            self._word.is_quoted = True

    def _field(self, quote: str) -> None:
        self._add("", is_bare=not quote)
        assert self._word is not None
        if not quote and self._word.bare.endswith("~"):
            raise NotPlainError("a '~' right before a field")
        before = self._is_behind_dashes or self._redirects
        self._word.fields.append(len(self.places))
        after = self._text[self._at + 1 : self._at + 2]
        self.places.append(
            WordPlace(
                Takes.TEXT,
                quote=quote,
                word=len(self._words),
                is_led=self._word.is_led,
                may_be_option=not before,
                needs_quotes=not quote and after in ("<", ">"),
            )
        )
        self._word.text += FIELD
        if not quote:
            self._word.bare += FIELD

    def _escape(self) -> None:
        after = self._text[self._at + 1 : self._at + 2]
        if after in ("", FIELD):
            raise NotPlainError("a '\\' right before a field, or at its end")
        if after != "\n":  # backslash and newline together are ignored by the shell
            self._add(after, is_bare=False)
        self._at += 2

    def _quotes(self, quote: str) -> None:
        self._add("", is_bare=False)
        self._at += 1
        while True:
            character = self._text[self._at : self._at + 1]
            if not character:
                raise NotPlainError(f"a {quote} that is not closed")
            if character == quote:
                self._at += 1
                return
            if character == FIELD:
                self._field(quote)
            elif quote == '"' and character == "`":
                raise NotPlainError("a '`'")
            elif quote == '"' and character == "$":
                self._variable(quote)
                continue
            elif quote == '"' and character == "\\":
                self._escape()
                continue
            else:
                self._add(character, is_bare=False)
            self._at += 1

    def _variable(self, quote: str) -> None:
        match = _VARIABLE.match(self._text, self._at)
        assert match is not None
        after = self._text[match.end() : match.end() + 1]
        opens = after in ("(", "{", "[") if quote else after in ("(", "{", "[", "'", '"')
        if (len(match[0]) == 1 and opens) or after == FIELD:
            raise NotPlainError(f"'${after}'" if after != FIELD else "a '$' right before a field")
        self._add(match[0], is_bare=not quote)
        self._at = match.end()

    def _comment(self) -> None:
        end = self._text.find("\n", self._at)
        end = len(self._text) if end < 0 else end
        fields = self._text.count(FIELD, self._at, end)
        self.places += [WordPlace(Takes.WORD, "it is in a comment", word=len(self._words))] * fields
        self._at = end

    def _redirection(self) -> None:
        word = self._word
        if word is not None and word.bare == word.text and word.text.isdecimal():
            self._word = None  # the number of a descriptor
        self._end_word()
        if self._redirects:
            raise NotPlainError("a redirection without a file")
        match = re.compile(r"<<<|>>|>\||<>|[<>]&|&>>|&>|[<>]").match(self._text, self._at)
        assert match is not None
        after = self._text[match.end() : match.end() + 1]
        if match[0] != "<<<" and self._text.startswith("<<", self._at):
            raise NotPlainError("a here-document")
        if after == "(":
            raise NotPlainError(f"'{match[0]}('")
        if match[0].endswith("&") and after == FIELD:
            raise NotPlainError(f"'{match[0]}' right before a field")
        self._redirects = True
        self._at = match.end()

    def _end_word(self) -> None:
        word, self._word = self._word, None
        if word is None:
            return
        self._words.append(word)
        if word.fields and (found := _EXPANDS.search(word.bare)):
            raise NotPlainError(f"a '{found[0]}' in a word that has a field")
        if self._redirects:
            self._redirects = False
            self._note(has_fields=bool(word.fields))
        elif self._program is None:
            self._begin(word)
        else:
            if self._is_over:
                if word.is_quoted or word.text not in _AFTER_COMMANDS:
                    raise NotPlainError(f"a word behind {self._program!r}")
                return
            self._commands[-1][1].append(word.text)
            self._note(has_fields=bool(word.fields))
            is_field = bool(word.fields) and not word.is_led
            self._is_behind_dashes = word.text == "--" or (self._is_behind_dashes and is_field)

    def _note(self, *, has_fields: bool) -> None:
        if has_fields and self._program is not None and not self._is_over:
            name, words, _ = self._commands[-1]
            self._commands[-1] = (name, words, True)

    def _begin(self, word: _Word) -> None:
        """Process the first word of a command, or one before it (such as an assignment)."""
        if not word.is_quoted and word.text in _BEFORE_A_COMMAND:
            return
        if not word.is_quoted and word.text in _AFTER_COMMANDS:
            self._program, self._is_over = word.text, True
            return
        if not word.is_quoted and word.text in _OTHER_RESERVED:
            raise NotPlainError(repr(word.text))
        match = _ASSIGNMENT.match(word.bare)
        if match and word.text.startswith(match[0]):
            self._limit(word, Takes.NUMBER, "it is the value of a variable")
            return
        if word.fields:
            self._limit(word, Takes.NOTHING, "it would name the program to run")
            self._program = "a program that a value names"
            self._commands.append((self._program, [], True))
            return
        if not _PROGRAM.fullmatch(word.text) or word.text.startswith("-"):
            raise NotPlainError(f"{word.text[:40]!r} for a program")
        if word.text in _BUILTINS - _PLAIN.keys() - _PREPARING - _READ_ONCE:
            raise NotPlainError(f"the builtin {word.text!r}")
        self._program = word.text
        self._commands.append((word.text, [], False))

    def _limit(self, word: _Word, takes: Takes, why: str) -> None:
        for number in word.fields:
            self.places[number] = replace(self.places[number], takes=takes, why=why)

    def _end_command(self) -> None:
        self._end_word()
        if self._redirects:
            raise NotPlainError("a redirection without a file")
        self._program, self._is_over, self._is_behind_dashes = None, False, False
