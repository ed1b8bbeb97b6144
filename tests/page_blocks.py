"""The code blocks of the pages: each is run by a test, checked, or marked as not run.

    python tests/page_blocks.py        what is wrong with the blocks; `make check` runs this

A block is fenced, and its language says what becomes of it:

    python, sh          run, page by page from top to bottom, on a live stack
    output              compared with what the block before it has printed; `…` stands for anything
    yaml, toml, json    parsed; the YAML of an endpoint is checked as its configuration
    console, pycon      the record of a session, not run: only its commands and options must exist
    jinja, mermaid, nginx, text    neither

`<!-- not run: REASON -->` in the line before a block of the first two kinds marks it as not run.
The lines of a comment that begins with `<!-- run first:` run too, but are not shown.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = ("python", "sh")
CHECKED = ("yaml", "toml", "json")
RECORDS = ("console", "pycon")
OTHER = ("output", "jinja", "mermaid", "nginx", "text")
#: Printed by a page's program after each block.
END = "\x1e"

_FENCE = re.compile(r"( *)(```+)(.*)")
_MARKER = re.compile(r"<!-- not run: (\S.*) -->")
_FIRST = "<!-- run first:"
_ITEM = re.compile(r"\s*([-*+]|\d+[.)])\s")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        line: number of its first line, the fence, from 1.
        language: the word behind the fence; empty: none. `indented`: it has no fence.
        lines: its text.
        skipped: why it is not run; `None`: there is no marker.
    """

    line: int
    language: str
    lines: list[str]
    skipped: str | None = None

    @property
    def is_run(self) -> bool:
        """Whether it is part of its page's program."""
        return self.language in RUN and self.skipped is None

    @property
    def text(self) -> str:
        """Its text, as one."""
        return "\n".join(self.lines) + "\n"


def pages() -> list[Path]:
    """Return all pages of the documentation."""
    top = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))
    return [*top, *sorted((ROOT / "docs").glob("*.md")), ROOT / "flux_plugins" / "README.md"]


def blocks(text: str) -> Iterator[Block]:
    """Return the blocks of a page."""
    lines = text.split("\n")
    at, in_list, after_blank = 0, False, True
    while at < len(lines):
        line = lines[at]
        if found := _FENCE.fullmatch(line):
            indent, fence, language = found.groups()
            end = next(n for n in range(at + 1, len(lines)) if lines[n].strip() == fence)
            content = [each.removeprefix(indent) for each in lines[at + 1 : end]]
            marker = _MARKER.fullmatch(lines[at - 1].strip()) if at else None
            yield Block(at + 1, language.strip(), content, marker[1] if marker else None)
            at = end
        elif line.startswith("    ") and line.strip() and after_blank and not in_list:
            yield Block(at + 1, "indented", [line])
            while at + 1 < len(lines) and lines[at + 1].startswith("    "):
                at += 1
        elif line.strip():
            in_list = bool(_ITEM.match(line)) or (in_list and line.startswith(" "))
        after_blank = not line.strip()
        at += 1


def program(text: str) -> str:
    """Return the program of a page, line by line below the page's; empty: nothing runs.

    It prints `END` after each block.
    """
    lines = text.split("\n")
    kept = [""] * len(lines)
    found = [each for each in blocks(text) if each.is_run]
    if not found:
        return ""
    kept[0] = "import subprocess as _subprocess"
    for first in (n for n, line in enumerate(lines) if line.startswith(_FIRST)):
        end = next(n for n in range(first, len(lines)) if lines[n] == "-->")
        kept[first + 1 : end] = lines[first + 1 : end]
    for block in found:
        end = block.line + len(block.lines)
        if block.language == "python":
            kept[block.line : end] = block.lines
            kept[end] = f"print({END!r}, flush=True)"
        else:
            shell = f"_subprocess.run(['bash', '-ec', {block.text!r}], check=True)"
            kept[end] = f"print(end='', flush=True); {shell}; print({END!r}, flush=True)"
    return "\n".join(kept)


def printed_by_blocks(page: str) -> list[tuple[int, str]]:
    """Return what must be printed: the number of each block that runs, and the text.

    Args:
        page: the page's text.
    """
    found, number, last = [], -1, None
    for block in blocks(page):
        number += block.is_run
        if block.language == "output" and last is not None and last.is_run:
            found.append((number, block.text))
        last = block
    return found


def agrees(printed: str, shown: str) -> bool:
    """Return whether a program printed what a page shows; `…` stands for any text."""
    pattern = ".*".join(re.escape(part) for part in shown.strip().split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def problems(text: str) -> Iterator[tuple[int, str]]:
    """Return the lines of a page with a block that is neither run, checked nor marked, and why."""
    last: Block | None = None
    for block in blocks(text):
        known = (*RUN, *CHECKED, *RECORDS, *OTHER)
        if block.language == "indented":
            yield block.line, f"an indented block: put it between ```LANGUAGE ({', '.join(known)})"
        elif block.language not in known:
            yield block.line, f"language {block.language!r}: one of {', '.join(known)}"
        elif block.language in (*OTHER, *RECORDS) and block.skipped:
            yield block.line, f"a marker, but a block of {block.language} never runs: remove it"
        elif block.language == "output" and (last is None or not last.is_run):
            yield block.line, "output of a block that does not run: call it text"
        if block.language in ("sh", "console"):
            yield from ((block.line, each) for each in _unknown_commands(block))
        last = block
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip().startswith("<!-- not run") and not _MARKER.fullmatch(line.strip()):
            yield number, "the marker is a line of its own, `<!-- not run: REASON -->`"


def _unknown_commands(block: Block) -> Iterator[str]:
    """Return what a block's calls of `flux-endpoint` name that does not exist."""
    for line in re.sub(r"\\\n", " ", block.text).split("\n"):
        if block.language == "console" and not line.startswith("$ "):
            continue
        for part in re.split(r"[;&|()`]| -- ", line.removeprefix("$ ")):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # a part of a quoted text
                continue
            for at, word in enumerate(words):
                if at and words[at - 1].startswith("-"):  # the value of an option
                    continue
                if word.endswith("/flux-endpoint") or word == "flux-endpoint":
                    yield from _unknown(words[at + 1 :])
                elif word == "flux" and words[at + 1 : at + 2] == ["endpoint"]:
                    yield from _unknown(words[at + 2 :])


def _unknown(words: list[str]) -> Iterator[str]:
    import click

    from flux_endpoint.cli.main import COMMANDS, cli

    if not words or words[0] not in COMMANDS:
        if words and re.fullmatch("[a-z]+", words[0]):
            yield f"there is no command {words[0]!r}"
        return
    with click.Context(cli) as context:
        command = cli.get_command(context, words.pop(0))
        while isinstance(command, click.Group) and words:
            below = command.get_command(context, words[0])
            if below is None:
                break
            command = below
            words.pop(0)
        assert command is not None
        options = {"-h", "--help"}
        for parameter in command.params:
            options.update(parameter.opts, parameter.secondary_opts)
    for word in words:
        name = word.partition("=")[0]
        if re.fullmatch(r"--?[a-z][a-z-]*", name) and name not in options:
            yield f"{command.name} has no option {name}"


def main() -> int:
    """Print the problems of all pages; return the exit code."""
    count = 0
    for page in pages():
        for line, problem in problems(page.read_text(encoding="utf-8")):
            print(f"{page.relative_to(ROOT)}:{line}: {problem}")
            count += 1
    if count:
        print("Each block says what becomes of it: see the top of tests/page_blocks.py")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
