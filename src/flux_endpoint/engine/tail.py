"""The end of a stream of text, in bounded memory."""

from __future__ import annotations

_LINES = 1000
_CHARACTERS = 1 << 20
#: The most bytes of a stream in one report of a followed task. With both streams, and a character
#: that takes six in JSON, it stays within the limit of an event.
MOST_OF_PART = 1 << 16
#: Number of pieces that are kept unjoined: joining each time would copy the text for every line.
_PIECES = 4096
#: Bytes beyond twice the kept ones that wait to be joined.
_SLACK = 1 << 17


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


class StreamTail:
    """Keeps the end of a stream of bytes, and counts those before it.

    Args:
        most: the most bytes that are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._pieces: list[bytes] = []
        self._size = 0
        #: Number of bytes before the kept ones.
        self.dropped = 0

    @property
    def total(self) -> int:
        """Number of bytes so far."""
        return self.dropped + self._size

    @property
    def data(self) -> bytes:
        """The kept bytes; if some were dropped, they begin with a line, or at least a character."""
        self._join()
        return self._pieces[0]

    @property
    def text(self) -> str:
        """The kept bytes as text; invalid UTF-8 becomes backslash sequences."""
        return self.data.decode(errors="backslashreplace")

    def part(self, position: int) -> tuple[int, int, str]:
        """Return what is kept after a position, without an incomplete character at the end.

        It is at most `MOST_OF_PART` bytes: there may be more.

        Returns:
            The positions of its first byte and after its last one, and its text.
        """
        kept = self.data  # first: it may drop some
        begin = max(position, self.dropped) if position <= self.total else self.dropped
        first = begin - self.dropped
        data = complete_characters(kept[first : first + MOST_OF_PART])
        return begin, begin + len(data), data.decode(errors="backslashreplace")

    def add(self, data: bytes) -> None:
        """Add bytes to the end."""
        self._pieces.append(data)
        self._size += len(data)
        if len(self._pieces) > _PIECES or self._size > 2 * self.most + _SLACK:
            self._join()

    def _join(self) -> None:
        data = b"".join(self._pieces)
        if len(data) > self.most:
            data = from_line(data[len(data) - self.most :])
            self.dropped += self._size - len(data)
        self._pieces, self._size = [data], len(data)


def from_line(data: bytes) -> bytes:
    """Return `data` from its first line on that begins in the first half, or else character."""
    line = data.find(b"\n", 0, len(data) // 2) + 1
    if line:
        return data[line:]
    begin = 0
    while begin < min(3, len(data)) and data[begin] & 0xC0 == 0x80:  # the rest of a character
        begin += 1
    return data[begin:]


def complete_characters(data: bytes) -> bytes:
    """Return `data` without the beginning of a character of UTF-8 at its end."""
    for back in range(1, min(3, len(data)) + 1):
        lead = data[-back]
        if lead & 0xC0 == 0x80:
            continue
        length = 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)
        return data[:-back] if length > back else data
    return data
