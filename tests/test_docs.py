"""The pages: on the site, with links that lead somewhere and blocks that are run or checked."""

import json
import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from flux_endpoint.endpoint.config import EndpointConfig
from page_blocks import Block, agrees, blocks, pages, printed_by_blocks, problems, program

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    ROOT / "flux_plugins/README.md",
]
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s#]*)(#[^)\s]*)?\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as forges and the site make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", each).lower() for each in headings)
    words = (re.sub(r"[^\w\- ]", "", each) for each in plain)
    return {f"#{each.replace(' ', '-')}" for each in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for name, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{name}{anchor}")
    assert not broken


def test_every_page_is_on_the_site() -> None:
    index = (ROOT / "docs/site/index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^([a-z-]+)$", index, re.MULTILINE))
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= listed


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_run_or_checked_or_marked(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not list(problems(text))
    for block in blocks(text):
        if block.skipped is None:
            _check(block)


def _check(block: Block) -> None:
    match block.language:
        case "toml":
            tomllib.loads(block.text)
        case "json":
            json.loads(block.text)
        case "yaml":
            EndpointConfig.model_validate(yaml.safe_load(block.text))


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("text\n\n    make\n", 3, "an indented block"),
        ("```\nmake\n```\n", 1, "language ''"),
        ("```bash\nmake\n```\n", 1, "language 'bash'"),
        ("<!-- not run: no -->\n```text\nmake\n```\n", 2, "a marker"),
        ("<!-- not run -->\n```sh\nmake\n```\n", 1, "the marker is a line"),
        ("<!-- not run: no -->\n```sh\nmake\n```\n\n```output\n1\n```\n", 6, "output of a block"),
        ("```console\n$ flux-endpoint sing\n```\n", 1, "there is no command 'sing'"),
        ("```sh\nflux endpoint list --loud\n```\n", 1, "list has no option --loud"),
        ("```sh\nflux-endpoint service token create --loud\n```\n", 1, "create has no option"),
    ],
)
def test_a_block_that_is_neither_is_found(text: str, line: int, problem: str) -> None:
    [(at, found)] = problems(text)
    assert at == line
    assert found.startswith(problem)


def test_blocks_without_a_problem() -> None:
    text = "- a list\n\n    its text\n\n```sh\nflux endpoint list --json; make --loud\n```\n"
    assert not list(problems(text))


def test_the_program_of_a_page() -> None:
    page = "# Title\n<!-- run first:\na = 1\n-->\n```python\nprint(a)\n```\n\n```output\n1\n```\n"
    lines = program(page).split("\n")
    assert (lines[2], lines[5]) == ("a = 1", "print(a)")
    assert printed_by_blocks(page) == [(0, "1\n")]
    assert program("<!-- not run: no -->\n```python\n1 / 0\n```\n") == ""


def tool(name: str) -> Any:
    """Return a module of tools/."""
    spec = spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_describes_every_option_and_request() -> None:
    reference = tool("reference")
    for _, model in reference._CONFIGS.values():
        for name, _, text in reference.options(model):
            assert text, f"{model.__name__}.{name} needs a `#:` comment"
    requests = re.split(r"^## ", reference.rest(), flags=re.MULTILINE)[1:]
    assert any(each.startswith("GET /v3/tasks/{task_id}\n") for each in requests)
    for each in requests:
        assert re.match(r"[A-Z]+ /\S*\n\n[A-Z]", each), f"needs a docstring: {each}"


def test_each_diagram_has_a_picture_of_its_present_text() -> None:
    drawn = tool("diagrams")
    named = {path.stem: path.read_text(encoding="utf-8") for path in drawn.DIAGRAMS.glob("*.svg")}
    marks = {name: f"<!-- {drawn.digest(text)} -->" for name, text in drawn.diagrams().items()}
    assert marks.keys() == named.keys()
    old = [name for name, mark in marks.items() if not named[name].rstrip().endswith(mark)]
    assert not old, "draw them again: python tools/diagrams.py"
    assert all(ET.fromstring(svg).tag.endswith("svg") for svg in named.values())
    assert not any("http" in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg) for svg in named.values())


def test_output_is_compared() -> None:
    assert agrees("1 2\n3\n", "1 …\n3")
    assert agrees("a\nb\nc\n", "a\n…\nc\n")
    assert not agrees("1 2\n", "1\n")
