"""Draw the Mermaid diagrams of docs/ into docs/diagrams, with Chromium; needs npm and the network.

    python tools/diagrams.py

The site shows the pictures, so that it needs neither a script of 3.5 MB nor another host. Each one
names the hash of its text, so that a test finds those that are out of date.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIAGRAMS = ROOT / "docs" / "diagrams"
MERMAID = "mermaid@11.17.2"
_BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Chromium as root has no sandbox; it draws only what is in this repository.
_CHROMIUM = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--virtual-time-budget=60000",
]
_PAGE = """<!doctype html><meta charset="utf-8"><script src="mermaid.min.js"></script><script>
mermaid.initialize({startOnLoad: false, theme: "neutral", deterministicIds: true,
  fontFamily: "sans-serif"});
const sources = SOURCES;
window.onload = async () => {
  const drawn = [];
  for (const [name, text] of Object.entries(sources)) {
    const holder = document.createElement("div");
    holder.innerHTML = (await mermaid.render(name, text)).svg;
    drawn.push([name, new XMLSerializer().serializeToString(holder.firstChild)]);
  }
  const result = document.createElement("pre");
  result.id = "drawn";
  result.textContent = JSON.stringify(drawn);
  document.body.replaceChildren(result);
};
</script><body></body>"""


def diagrams() -> dict[str, str]:
    """Return the texts of all diagrams, by the names of their pictures: PAGE-NUMBER."""
    return {
        f"{page.stem}-{number}": text
        for page in sorted((ROOT / "docs").glob("*.md"))
        for number, text in enumerate(_BLOCK.findall(page.read_text(encoding="utf-8")), 1)
    }


def digest(text: str) -> str:
    """Return the hash of a diagram's text, as its picture names it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pictured(text: str, page: str) -> str:
    """Return a page's text with pictures in the place of its diagrams."""
    numbers = iter(range(1, 1000))
    return _BLOCK.sub(lambda _: f"![A diagram](diagrams/{page}-{next(numbers)}.svg)", text)


def main() -> int:
    """Draw all diagrams; return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        subprocess.run(["npm", "pack", "--silent", MERMAID], cwd=directory, check=True)
        with tarfile.open(next(directory.glob("*.tgz"))) as packed:
            script = packed.extractfile("package/dist/mermaid.min.js")
            assert script is not None
            (directory / "mermaid.min.js").write_bytes(script.read())
        page = directory / "page.html"
        page.write_text(_PAGE.replace("SOURCES", json.dumps(diagrams())), encoding="utf-8")
        command = [*_CHROMIUM, "--dump-dom", page.as_uri()]
        dom = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r'<pre id="drawn">(.*?)</pre>', dom, re.DOTALL)
    if found is None:
        sys.stderr.write("Chromium has drawn nothing: is a diagram's text wrong?\n")
        return 1
    DIAGRAMS.mkdir(exist_ok=True)
    for old in DIAGRAMS.glob("*.svg"):
        old.unlink()
    for each, svg in json.loads(html.unescape(found[1])):
        # Also readable on a dark page.
        shown = svg.replace('style="max-width', 'style="background-color: white; max-width', 1)
        mark = f"<!-- {digest(diagrams()[each])} -->"
        (DIAGRAMS / f"{each}.svg").write_text(f"{shown}\n{mark}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
