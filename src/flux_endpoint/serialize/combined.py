"""Strategies that write an object in several ways; the reader uses the first that works."""

# ruff: noqa: D102 - what serialize and deserialize promise is said in SerializationStrategy

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

from flux_endpoint.errors import DeserializationError, SerializationError
from flux_endpoint.serialize.packing import pack_buffers, unpack_buffers
from flux_endpoint.serialize.state import State
from flux_endpoint.serialize.strategies import (
    IDENTIFIER_LENGTH,
    DillCode,
    DillCodeSource,
    DillCodeTextInspect,
    DillDataBase64,
    JSONData,
    PureSourceDill,
    PureSourceTextInspect,
    SerializationStrategy,
)

_SHOWN = 50


class ComboSerializationStrategy(SerializationStrategy):
    """A packed list of the texts of those of `strategies` that can write the object."""

    strategies: ClassVar[list[type[SerializationStrategy]]]

    def serialize(self, data: Any) -> str:
        return self.identifier + pack_buffers(self._attempts(data))

    def state(self, data: Any) -> State | None:
        states = [strategy.instance().state(data) for strategy in self.strategies]
        if None in states:
            return None
        return tuple(part for state in states for part in state or ())

    def deserialize(self, payload: str) -> Any:
        return self._first(unpack_buffers(self.chomp(payload)))

    def _attempts(self, data: Any) -> list[str]:
        buffers: list[str] = []
        reasons: list[str] = []
        for strategy in self.strategies:
            try:
                buffers.append(strategy.instance().serialize(data))
            except Exception as error:  # noqa: BLE001 - whatever an object raises when it is pickled
                reasons.append(f"{strategy.__name__}: {type(error).__name__}: {error}")
        if not buffers:
            raise SerializationError(
                _listed("Serialization failed: No serialization methods were successful", reasons)
            )
        return buffers

    def _first(self, buffers: Iterable[str]) -> Any:
        # Only the listed strategies: a reader that allows this one has not allowed any others.
        known = {strategy.identifier: strategy for strategy in self.strategies}
        reasons: list[str] = []
        for buffer in buffers:
            strategy = known.get(buffer[:IDENTIFIER_LENGTH])
            if strategy is None:
                reasons.append(_no_part(type(self), buffer))
                continue
            try:
                return strategy.instance().deserialize(buffer)
            except Exception as error:  # noqa: BLE001 - likewise
                reasons.append(f"{strategy.__name__}: {type(error).__name__}: {error}")
        raise DeserializationError(_listed("Deserialization failed for every part", reasons))


def _no_part(cls: type, buffer: str) -> str:
    if "\n" not in buffer:
        shown = buffer[:_SHOWN] + "..." * (len(buffer) > _SHOWN)
        return f"Malformed data (no newline separator): {shown}"
    identifier = buffer.partition("\n")[0][:_SHOWN]
    return f"Invalid strategy identifier: {identifier!r} is no part of {cls.__name__}"


def _listed(what: str, reasons: list[str]) -> str:
    return what + "".join(f"\n- {reason}" for reason in reasons or ["it has no parts"])


class CombinedCode(ComboSerializationStrategy):
    """Identifiers and payloads of the function, joined with colons.

    Deprecated: use `AllCodeStrategies`.
    """

    identifier = "10\n"
    for_code = True
    strategies: ClassVar[list[type[SerializationStrategy]]] = [
        DillCodeSource,
        DillCode,
        DillCodeTextInspect,
        PureSourceDill,
        PureSourceTextInspect,
    ]
    state = ComboSerializationStrategy.state

    # Source text contains colons, so a part only ends before another part's identifier.
    _part = re.compile(
        "(?:^|:)(" + "|".join(strategy.identifier for strategy in strategies) + "):", re.DOTALL
    )

    def serialize(self, data: Any) -> str:
        parts = self._attempts(data)
        return self.identifier + ":".join(
            f"{part[:IDENTIFIER_LENGTH]}:{part[IDENTIFIER_LENGTH:]}" for part in parts
        )

    def deserialize(self, payload: str, variation: int = 0) -> Any:
        """Return the function in `payload`.

        Args:
            payload: the text that `serialize` returned.
            variation: number of the part to read, from 1; 0: the first that can be read.

        Raises:
            DeserializationError: no part, or not the requested one, can be read.
        """
        text = self.chomp(payload)
        pieces = self._part.split(text)
        if pieces[0]:
            raise DeserializationError(_no_part(type(self), text))
        parts = list(map("".join, zip(pieces[1::2], pieces[2::2], strict=True)))
        if variation == 0:
            return self._first(parts)
        if not 0 < variation <= len(parts):
            raise DeserializationError(f"there are {len(parts)} variations, no #{variation}")
        return self._first([parts[variation - 1]])


class AllCodeStrategies(ComboSerializationStrategy):
    """A function as source text and as byte code: the most compatible way, and the largest."""

    identifier = "12\n"
    for_code = True
    strategies: ClassVar[list[type[SerializationStrategy]]] = [
        PureSourceTextInspect,
        PureSourceDill,
        DillCode,
    ]
    state = ComboSerializationStrategy.state


class AllDataStrategies(ComboSerializationStrategy):
    """Data as JSON and through dill."""

    identifier = "13\n"
    for_code = False
    strategies: ClassVar[list[type[SerializationStrategy]]] = [JSONData, DillDataBase64]
