"""Every block of the pages that is not marked, run from top to bottom as a user would."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

import page_blocks
from foreground import Process
from page_blocks import ROOT, pages

pytestmark = pytest.mark.rabbitmq

PROGRAMS = {
    str(page.relative_to(ROOT)): made
    for page in pages()
    if (made := page_blocks.program(page.read_text(encoding="utf-8")))
}
RUNNER = Path(__file__).parent / "page_runner.py"


@pytest.fixture(scope="module")
def run(stack) -> Iterator[Callable[[Path], tuple[int, str, str]]]:
    """A function that runs a program, and returns its exit code and what it printed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**stack.environment, "PATH": path}
    command = [sys.executable, str(RUNNER)]
    with Process(command, env=environment, stdin=PIPE, stdout=PIPE, text=True) as runner:

        def run(program: Path) -> tuple[int, str, str]:
            output, errors = program.with_suffix(".out"), program.with_suffix(".err")
            request = [str(each) for each in (program, program.parent, output, errors)]
            print(json.dumps(request), file=runner.stdin, flush=True)
            return int(runner.stdout.readline()), output.read_text(), errors.read_text()

        yield run
        runner.stdin.close()
        runner.wait()


@pytest.mark.parametrize("page", PROGRAMS)
def test_a_page(page, run, tmp_path):
    program = tmp_path / f"{Path(page).stem.replace('-', '_').lower()}.py"
    program.write_text(PROGRAMS[page], encoding="utf-8")
    for name in ("examples", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    code, output, errors = run(program)
    assert code == 0, f"{output}\n{errors}"
    printed = output.split(page_blocks.END)
    for number, shown in page_blocks.printed_by_blocks((ROOT / page).read_text(encoding="utf-8")):
        assert page_blocks.agrees(printed[number], shown), printed[number]


def test_pages_are_run():
    assert "README.md" in PROGRAMS
