"""Objects to serialize, importable from both sides of a wire test."""

from __future__ import annotations


def area(width, height=2):
    """Area of a rectangle."""
    return width * height  # a colon: and an umlaut: ä


class Multiplier:
    """Callable, but no function."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x
