"""HTML for notebooks: small tables in the notebook's own colours, with all text escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_NAME = "text-align:left;padding:0 1em 0 0;font-weight:normal;opacity:0.7;vertical-align:top"
_VALUE = "text-align:left;padding:0"
_TEXT = "margin:0;padding:0;max-height:20em;overflow:auto;white-space:pre-wrap"


def table(caption: str, rows: Iterable[tuple[str, object]]) -> str:
    """Return a table with a row for each name and value; `None` is left out.

    Args:
        caption: text above it.
        rows: names and values; a text of several lines keeps them.
    """
    lines = [f"<tr>{_name(name)}{_cell(value)}</tr>" for name, value in rows if value is not None]
    return f"<div><strong>{escape(caption)}</strong><table>{''.join(lines)}</table></div>"


def bar(caption: str, done: int, count: int, note: str) -> str:
    """Return a progress bar.

    Args:
        caption: text before it.
        done: number of the items that are done.
        count: number of all items.
        note: text after it.
    """
    label = escape(f"{caption}: {done} of {count} done", quote=True)
    return (
        f'<div>{escape(caption)} <progress value="{done}" max="{max(count, 1)}" '
        f'aria-label="{label}" style="width:20em;vertical-align:middle"></progress> '
        f"{done}/{count} {escape(note)}</div>"
    )


def _name(name: str) -> str:
    return f'<th scope="row" style="{_NAME}">{escape(name)}</th>'


def _cell(value: object) -> str:
    text = escape(str(value))
    if "\n" in text:
        text = f'<pre style="{_TEXT}">{text}</pre>'
    return f'<td style="{_VALUE}">{text}</td>'
