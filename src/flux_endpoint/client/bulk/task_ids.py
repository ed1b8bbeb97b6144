"""The ids of a group's tasks: 16 bytes each, found by binary search."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from uuid import UUID

#: Bytes of an id.
_SIZE = 16


class TaskIds:
    """Ids in order of submission; each has an index, from 0.

    The service gives the tasks of a submission ascending ids, so a part needs no further index. For
    a part in another order (of another service) its order by id is kept, with 4 bytes for each.
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, ids: Sequence[str]) -> None:
        """Append the ids of a submission.

        Raises:
            ValueError: one is not a UUID.
        """
        if ids:
            self._parts.append(_Part(self._length, ids))
            self._length += len(ids)

    def __getitem__(self, index: int) -> str:
        for part in self._parts:
            if index < part.first + part.count:
                return str(UUID(bytes=part.id_at(index - part.first)))
        raise IndexError(index)

    def find(self, task_id: str) -> int | None:
        """Return the index of an id; `None`: it is not here."""
        try:
            wanted = _parsed(task_id)
        except ValueError:
            return None
        for part in self._parts:
            if part.least <= wanted <= part.greatest:
                found = part.find(wanted)
                if found is not None:
                    return part.first + found
        return None


def _parsed(task_id: str) -> bytes:
    # Several times as fast as UUID().
    parsed = bytes.fromhex(task_id.replace("-", ""))
    if len(parsed) != _SIZE:
        raise ValueError(f"{task_id!r} is not a UUID")
    return parsed


class _Part:
    """The ids of one submission."""

    __slots__ = ("_by_id", "_ids", "count", "first", "greatest", "least")

    def __init__(self, first: int, ids: Sequence[str]) -> None:
        parsed = [_parsed(each) for each in ids]
        self.first = first
        self.count = len(parsed)
        self._ids = b"".join(parsed)
        in_order = sorted(parsed)
        self.least, self.greatest = in_order[0], in_order[-1]
        self._by_id: array[int] | None = None
        if parsed != in_order:
            self._by_id = array("I", sorted(range(len(parsed)), key=parsed.__getitem__))

    def id_at(self, position: int) -> bytes:
        return self._ids[_SIZE * position : _SIZE * (position + 1)]

    def find(self, wanted: bytes) -> int | None:
        low, high = 0, self.count - 1
        while low <= high:
            middle = (low + high) // 2
            position = middle if self._by_id is None else self._by_id[middle]
            here = self.id_at(position)
            if here == wanted:
                return position
            if here < wanted:
                low = middle + 1
            else:
                high = middle - 1
        return None
