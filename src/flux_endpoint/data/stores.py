"""Stores of large data, and the handles of what they keep."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from flux_endpoint.data.objects import EncodedObject
from flux_endpoint.data.references import CallArguments, Place, load_stored
from flux_endpoint.errors import DataStoreError, SerializationError
from flux_endpoint.protocol.duration import format_duration, parse_duration
from flux_endpoint.protocol.size import parse_size

_Data = TypeVar("_Data")

#: Arguments, or a result, above this size go to the store (bytes).
DEFAULT_THRESHOLD = 2**20
#: The shortest lifetime (s): tasks wait, and clocks differ.
SHORTEST = 60.0
#: After this part of the lifetime, what a program keeps a reference to is written again.
_PERIOD = 0.25
#: Values of these types are small, texts and bytes of at most so many characters.
_ATOMS = (bool, float, int, type(None))
_SHORT = 1024
_FEW = 64


class StoredData(Generic[_Data]):
    """A handle of an object in a store. As an argument of a task it stands for the object.

    Args:
        place: where the object is.
        size: its bytes there.
        lifetime: seconds for which the object is kept; sending the handle prolongs it.

    Attributes:
        size: its bytes in the store.
    """

    def __init__(self, place: Place, size: int, lifetime: float) -> None:
        self._place = place
        self.size = size
        self._lifetime = lifetime
        self._period_ends = time.monotonic() + lifetime * _PERIOD

    def __repr__(self) -> str:
        return f"<StoredData {shown_size(self.size)} {self._place}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if time.monotonic() >= self._period_ends:
            self._period_ends = time.monotonic() + self._lifetime * _PERIOD
            self._place.prolong(self._lifetime)
        return load_stored, (self._place,)

    def __copy__(self) -> StoredData[_Data]:
        return self

    def __deepcopy__(self, _memo: object) -> StoredData[_Data]:
        return self

    def get(self) -> _Data:
        """Return the object.

        Raises:
            DataStoreError: it is not there any more, can't be read, or is damaged.
        """
        found: _Data = load_stored(self._place)
        return found

    def delete(self) -> None:
        """Remove the object now; tasks that refer to it fail from now on.

        Raises:
            DataStoreError: it can't be removed.
        """
        self._place.remove()


class DataStore(ABC):
    """Keeps large arguments and results, so that messages only have references to them.

    Args:
        lifetime: seconds, or text such as `7d`, for which each object is kept at least, from the
            last time that it was written or sent; `infinity`: until it is deleted.
        threshold: arguments or a result of more bytes than this go to the store; bytes, or text
            such as `1M`.

    Attributes:
        lifetime: seconds for which objects are kept.
        threshold: bytes.

    Raises:
        ValueError: `lifetime` is not a duration of at least a minute, or `threshold` not a size.
    """

    def __init__(self, lifetime: float | str, threshold: float | str = DEFAULT_THRESHOLD) -> None:
        self.lifetime = _checked_lifetime(lifetime)
        self.threshold = parse_size(threshold)
        self._period: object = object()
        self._period_ends = time.monotonic() + self.lifetime * _PERIOD

    def period(self) -> object:
        """Return an object that is another one whenever references should be renewed."""
        if time.monotonic() >= self._period_ends:
            self._period = object()
            self._period_ends = time.monotonic() + self.lifetime * _PERIOD
        return self._period

    @property
    def _settings(self) -> str:
        return f"lifetime='{format_duration(self.lifetime)}'"

    @abstractmethod
    def _keep(self, data: EncodedObject, lifetime: float) -> tuple[Place, int]:
        """Write an object.

        Args:
            data: the object.
            lifetime: seconds.

        Returns:
            Its place, and its bytes there.

        Raises:
            DataStoreError: it can't be written.
        """

    def put(self, data: _Data, *, lifetime: float | str | None = None) -> StoredData[_Data]:
        """Write an object to the store.

        Args:
            data: any object that can be an argument.
            lifetime: as of the store; by default the store's.

        Returns:
            A handle. Among the arguments of any number of tasks it stands for the object.

        Raises:
            SerializationError: the object can't be pickled.
            DataStoreError: it can't be written.
            ValueError: `lifetime` is not a duration of at least a minute.
        """
        seconds = self.lifetime if lifetime is None else _checked_lifetime(lifetime)
        try:
            encoded = EncodedObject(data)
        except Exception as error:
            raise SerializationError(
                f"an object of type '{type(data).__name__}' can't be stored: "
                f"{type(error).__name__}: {error}"
            ) from error
        return StoredData(*self._keep(encoded, seconds), seconds)

    def offload(self, value: Any) -> Any:
        """Return a value that is small, or the handle of one that has been written to the store.

        Args:
            value: any value. If it can't be pickled, it is returned: who serializes it next says
                why it fails.

        Raises:
            DataStoreError: it is large, and can't be written.
        """
        if _is_small(value):
            return value
        try:
            encoded = EncodedObject(value)
        except Exception:  # noqa: BLE001 - whatever an object raises when it is pickled
            return value
        if encoded.content <= self.threshold:
            return value
        return StoredData(*self._keep(encoded, self.lifetime), self.lifetime)

    def call(self, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the arguments of a call as they are to be serialized; large ones are stored.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.

        Raises:
            DataStoreError: they are large, and can't be written.
        """
        return CallArguments(self.offload(tuple(args)), self), self.offload(kwargs)


def _checked_lifetime(value: float | str) -> float:
    seconds = parse_duration(value)
    if seconds < SHORTEST:
        raise ValueError(
            f"lifetime must be at least {format_duration(SHORTEST)}, got {value!r}: data has to be "
            "there until the last task that needs it has started"
        )
    return seconds


def _is_small(value: Any) -> bool:
    """Return whether a value is small for sure, without pickling it."""
    kind = type(value)
    if kind in _ATOMS:
        return kind is not int or value.bit_length() < _SHORT
    if kind in (str, bytes):
        return len(value) <= _SHORT
    if kind not in (dict, list, tuple) or len(value) > _FEW:
        return False
    values = [*value, *value.values()] if kind is dict else value
    return all(type(each) not in (dict, list, tuple) and _is_small(each) for each in values)


def shown_size(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def damaged(what: str) -> DataStoreError:
    """Return the error for an object whose bytes are not those that were written.

    Args:
        what: the object.
    """
    return DataStoreError(
        f"{what} is damaged: its checksum is not that of what was written. Write it again, and "
        "look for errors of the disk"
    )
