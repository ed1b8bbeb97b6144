"""References to stored objects: they are unpickled as the objects themselves."""

from __future__ import annotations

import binascii
from abc import ABC, abstractmethod
from typing import Any

from flux_endpoint.data.objects import Buffer, decoded
from flux_endpoint.serialize import DillDataBase64

#: The longest serialized text that is examined for being a reference, in characters.
_LONGEST = 1 << 16


class Place(ABC):
    """Where one object is stored."""

    @abstractmethod
    def read(self) -> Buffer:
        """Return all of its bytes, whose digest has been compared.

        Raises:
            DataStoreError: it is not there, can't be read, or is damaged.
        """

    def prolong(self, lifetime: float) -> None:  # noqa: B027 - not every store knows lifetimes
        """Keep it for so many seconds from now on at least, if it is there and this is possible."""

    @abstractmethod
    def remove(self) -> None:
        """Remove it; it may be gone.

        Raises:
            DataStoreError: it can't be removed.
        """


def load_stored(place: Place) -> Any:
    """Return a stored object; references are pickled as a call of this.

    Args:
        place: where it is.

    Raises:
        DataStoreError: it is not there, can't be read, or is damaged.
    """
    return decoded(place.read())


class Arguments(tuple[Any, ...]):
    """The positional arguments of a call whose result may go to a store.

    Attributes:
        store: that store.
    """

    store: Any

    def __new__(cls, values: tuple[Any, ...], store: Any) -> Arguments:  # noqa: D102
        made = super().__new__(cls, values)
        made.store = store
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (tuple(self), self.store)


class CallArguments:
    """Pickled as `Arguments`.

    Args:
        values: the positional arguments, or a reference to them.
        store: the store for the call's result.
    """

    def __init__(self, values: Any, store: Any) -> None:
        self._values = values
        self._store = store

    def __reduce__(self) -> tuple[Any, ...]:
        return Arguments, (self._values, self._store)


def is_reference(text: str) -> bool:
    """Return whether a serialized value is no more than a reference, or has one in little data.

    Args:
        text: the value as `DillDataBase64` writes it; of others the answer is no.
    """
    if len(text) > _LONGEST or not text.startswith(DillDataBase64.identifier):
        return False
    try:
        return load_stored.__module__.encode() in binascii.a2b_base64(text[3:])
    except ValueError:  # it is not base64
        return False
