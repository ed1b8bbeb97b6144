"""The end of a stream of text, in bounded memory."""

from __future__ import annotations

_LINES = 1000
_CHARACTERS = 1 << 20


class Tail:
    """Keeps the last lines of what is added, at most a thousand of them and a MiB."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, text: str) -> None:
        """Add text to the end."""
        self._text += text
        if len(self._text) > 2 * _CHARACTERS:
            self._text = self.text

    @property
    def text(self) -> str:
        """The last lines."""
        lines = self._text[-_CHARACTERS:].splitlines(keepends=True)
        return "".join(lines[-_LINES:])
