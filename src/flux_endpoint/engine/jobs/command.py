"""Distinguishes simple commands from scripts, and finds the program of a command line."""

from __future__ import annotations

import re
import shlex

#: Each of these, outside of quotes, needs a shell.
_SHELL = re.compile(r"[|&;<>()$`\\*?\[\]{}~#!\n%]")
#: These need a shell before the first word; `--x=1` after it is an ordinary word.
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
#: A program's name or path as a single word.
_PROGRAM = re.compile(r"(?:\S*/)?([\w.+-]+)(?=[\s;|&<>]|$)")
_QUOTED = re.compile(r"'[^']*'|\"[^\"$`\\]*\"")


def simple_words(command: str) -> list[str] | None:
    """Return the words of `command`, or `None` if it needs a shell.

    A command is simple if it is one line of plain words. Quotes are allowed unless something in
    double quotes would be expanded. Everything else is a script.
    """
    text = command.strip()
    if not text or _ASSIGNMENT.match(text) or _SHELL.search(_QUOTED.sub("", text)):
        return None
    try:
        return shlex.split(text)
    except ValueError:  # an unclosed quote: let the shell report it
        return None


def program_of(command: str) -> str:
    """Return the name of the program that a command line begins with; "" if that is not plain."""
    words = command.split()
    while words and _ASSIGNMENT.match(words[0]):
        words.pop(0)
    found = _PROGRAM.match(words[0]) if words else None
    return found[1] if found else ""
