"""Telling a simple command from a script, and what it runs."""

from __future__ import annotations

import re
import shlex

#: Outside of quotes, each of these means that a shell has work to do.
_SHELL = re.compile(r"[|&;<>()$`\\*?\[\]{}~#!\n%]")
#: The same before the first word; `--x=1` after it is a word like any other.
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
#: A program's name or path, as a word of its own.
_PROGRAM = re.compile(r"(?:\S*/)?([\w.+-]+)(?=[\s;|&<>]|$)")
_QUOTED = re.compile(r"'[^']*'|\"[^\"$`\\]*\"")


def simple_words(command: str) -> list[str] | None:
    """Return the words of `command`, or `None` if it needs a shell.

    A command is simple when it is one line of plain words; quotes are fine as long as nothing
    inside of double quotes would be expanded. Everything else is a script.
    """
    text = command.strip()
    if not text or _ASSIGNMENT.match(text) or _SHELL.search(_QUOTED.sub("", text)):
        return None
    try:
        return shlex.split(text)
    except ValueError:  # an open quote: let the shell say so
        return None


def program_of(command: str) -> str:
    """Return the name of the program that a command line begins with, "" if that is not plain."""
    words = command.split()
    while words and _ASSIGNMENT.match(words[0]):
        words.pop(0)
    found = _PROGRAM.match(words[0]) if words else None
    return found[1] if found else ""
