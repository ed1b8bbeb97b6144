"""Draws a chart of step functions over time, as a plain SVG document."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

from step_functions import Steps

_WIDTH, _HEIGHT = 900, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 64, 44
#: Colours that colour-blind people can distinguish, also in greyscale.
_FILLS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
_INK = "#222222"


@dataclass(frozen=True)
class Area:
    """A filled curve."""

    name: str
    steps: Steps


@dataclass(frozen=True)
class Line:
    """A line."""

    name: str
    steps: Steps


def draw(
    *,
    title: str,
    areas: list[Area],
    line: Line,
    width: float,
    height: float,
    x_label: str,
    y_label: str,
) -> str:
    """Return the SVG document.

    Args:
        title: title of the chart.
        areas: the filled curves; each one is drawn over the previous ones.
        line: the line, drawn over all areas.
        width: the largest time on the x axis.
        height: the largest value on the y axis.
        x_label: label of the x axis.
        y_label: label of the y axis.
    """
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(at: float) -> float:
        return _LEFT + inner_width * min(max(at / width, 0.0), 1.0)

    def y(value: float) -> float:
        return _TOP + inner_height * (1 - value / height)

    def path(steps: Steps) -> str:
        parts = [f"M{_LEFT} {y(0):.1f}"]
        for at, value in steps:
            parts.append(f"H{x(at):.1f}V{y(value):.1f}")
        return "".join(parts)

    def text(at: float, top: float, content: str, **more: str) -> str:
        attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
        return f'<text x="{at:.1f}" y="{top:.1f}"{attributes}>{escape(content)}</text>'

    fills = dict(zip([area.name for area in areas[::-1]], _FILLS, strict=False))
    body = [
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        text(_LEFT, 22, title, font_size="15", font_weight="bold"),
    ]
    for value in range(0, int(height) + 1, _tick(height)):
        body += [
            f'<path d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd"/>',
            text(_LEFT - 6, y(value) + 4, str(value), text_anchor="end"),
        ]
    body += [
        text(x(at), _HEIGHT - _BOTTOM + 18, str(at), text_anchor="middle")
        for at in range(0, int(width) + 1, _tick(width))
    ]
    body += [
        f'<path d="{path(area.steps)}H{_WIDTH - _RIGHT}V{y(0):.1f}Z" fill="{fills[area.name]}"/>'
        for area in areas
    ]
    body.append(f'<path d="{path(line.steps)}" fill="none" stroke="{_INK}" stroke-width="1.5"/>')
    at = float(_LEFT)
    for name, fill in fills.items():
        body.append(f'<rect x="{at:.1f}" y="36" width="12" height="12" fill="{fill}"/>')
        body.append(text(at + 17, 46.5, name))
        at += 40 + 6.6 * len(name)
    body.append(f'<path d="M{at:.1f} 42h16" stroke="{_INK}" stroke-width="1.5"/>')
    body.append(text(at + 21, 46.5, line.name))
    body.append(text(_WIDTH - _RIGHT, _HEIGHT - 8, x_label, text_anchor="end"))
    body.append(text(_LEFT - 6, _TOP - 8, y_label, text_anchor="end"))
    content = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12" '
        f'fill="{_INK}">\n<title>{escape(title)}</title>\n{content}\n</svg>\n'
    )


def _tick(size: float) -> int:
    return next((step for step in (1, 2, 4, 5, 10, 20, 50, 100, 200) if size / step <= 10), 500)
