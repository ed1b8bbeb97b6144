"""The end of a stream of text, in bounded memory."""

from __future__ import annotations

_LINES = 1000
_CHARACTERS = 1 << 20
#: Number of pieces that are kept unjoined: joining each time would copy the text for every line.
_PIECES = 4096


class Tail:
    """Keeps the last lines of added text: at most a thousand lines and one MiB."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Add text to the end."""
        self._pieces.append(text)
        self._size += len(text)
        if len(self._pieces) > _PIECES or self._size > 2 * _CHARACTERS:
            self._pieces = [self.text]
            self._size = len(self._pieces[0])

    @property
    def text(self) -> str:
        """The last lines."""
        lines = "".join(self._pieces)[-_CHARACTERS:].splitlines(keepends=True)
        return "".join(lines[-_LINES:])
