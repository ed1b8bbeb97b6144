"""Draws a chart of ratios between our values and those of the peers, as a plain SVG document."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _LINE = 1000, 530, 24, 58, 40, 22
#: Colours that colour-blind people can distinguish, also in greyscale.
_GOOD, _SHORT, _PLAIN, _INK = "#0072b2", "#d55e00", "#777777", "#222222"


@dataclass(frozen=True)
class Bar:
    """One comparison. All values are ratios; above 1, ours is better.

    Args:
        name: description of the comparison.
        value: median of the rounds.
        least: ratio of the worst round.
        most: ratio of the best round.
        bound: required ratio, if there is one.
    """

    name: str
    value: float
    least: float
    most: float
    bound: float | None

    @property
    def colour(self) -> str:
        if self.bound is None:
            return _PLAIN
        return _GOOD if self.value >= self.bound else _SHORT


def draw(title: str, bars: Sequence[Bar]) -> str:
    """Return the SVG document.

    Args:
        title: title of the chart.
        bars: the comparisons from top to bottom.
    """
    values = [v for b in bars for v in (b.least, b.most, b.bound or 1.0) if v > 0]
    low = min(-1, math.floor(math.log10(min(values, default=1.0))))
    high = max(1, math.ceil(math.log10(max(values, default=1.0))))
    height = _TOP + _LINE * len(bars) + _BOTTOM

    def x(value: float) -> float:
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share

    body = [
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
        _legend(),
    ]
    for power in range(low, high + 1):
        at, stroke = x(10.0**power), "#888888" if power == 0 else "#dddddd"
        bottom = height - _BOTTOM + 4
        body.append(f'<path d="M{at:.1f} {_TOP - 6}V{bottom}" stroke="{stroke}"/>')
        label = f"{10.0**power:g}"
        body.append(f'<text x="{at:.1f}" y="{bottom + 14}" text-anchor="middle">{label}</text>')
    for index, bar in enumerate(bars):
        body += _bar(bar, _TOP + _LINE * index + _LINE / 2, x)
    body.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{height - 6}" text-anchor="end">'
        "times better than the peer; the other way round below 1</text>"
    )
    content = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12" '
        f'fill="{_INK}">\n<title>{escape(title)}</title>\n{content}\n</svg>\n'
    )


def _bar(bar: Bar, y: float, x: Callable[[float], float]) -> list[str]:
    line = f"M{x(bar.least):.1f} {y:.1f}H{x(bar.most):.1f}"
    parts = [
        f'<text x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(bar.name)}</text>',
        f'<path d="{line}" stroke="{bar.colour}" stroke-width="3"/>',
        f'<circle cx="{x(bar.value):.1f}" cy="{y:.1f}" r="4.5" fill="{bar.colour}"/>',
    ]
    if bar.bound is not None:
        parts.append(f'<path d="M{x(bar.bound):.1f} {y - 8:.1f}v16" stroke="{_INK}"/>')
    return parts


def _legend() -> str:
    parts, at = [], 12.0
    for name, colour in (("reached", _GOOD), ("falls short", _SHORT), ("only told", _PLAIN)):
        parts.append(f'<circle cx="{at + 5:.1f}" cy="40" r="4.5" fill="{colour}"/>')
        parts.append(f'<text x="{at + 15:.1f}" y="44">{name}</text>')
        at += 34 + 6.6 * len(name)
    parts.append(f'<path d="M{at + 5:.1f} 32v16" stroke="{_INK}"/>')
    parts.append(f'<text x="{at + 13:.1f}" y="44">must reach</text>')
    return "".join(parts)
