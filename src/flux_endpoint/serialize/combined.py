"""Strategies that write an object in several ways, for a reader who takes the first that works."""

# ruff: noqa: D102 - what serialize and deserialize promise is said in SerializationStrategy

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

from flux_endpoint.errors import DeserializationError, SerializationError
from flux_endpoint.serialize.code import (
    DillCode,
    DillCodeSource,
    DillCodeTextInspect,
    PureSourceDill,
    PureSourceTextInspect,
)
from flux_endpoint.serialize.data import DillDataBase64, JSONData
from flux_endpoint.serialize.packing import pack_buffers, unpack_buffers
from flux_endpoint.serialize.state import State
from flux_endpoint.serialize.strategies import IDENTIFIER_LENGTH, SerializationStrategy


class ComboSerializationStrategy(SerializationStrategy):
    """A packed list of what each of `strategies` wrote, as far as it could."""

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
            raise SerializationError(_listed("no strategy could write it", reasons))
        return buffers

    def _first(self, buffers: Iterable[str]) -> Any:
        # Only our own parts: a reader that allows this strategy has allowed no others.
        known = {strategy.identifier: strategy for strategy in self.strategies}
        reasons: list[str] = []
        for buffer in buffers:
            strategy = known.get(buffer[:IDENTIFIER_LENGTH])
            if strategy is None:
                reasons.append(
                    f"{buffer[:IDENTIFIER_LENGTH]!r} is no part of {type(self).__name__}"
                )
                continue
            try:
                return strategy.instance().deserialize(buffer)
            except Exception as error:  # noqa: BLE001 - likewise
                reasons.append(f"{strategy.__name__}: {type(error).__name__}: {error}")
        raise DeserializationError(_listed("no part of it could be read", reasons))


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

    # Source text has colons too, so a part ends only where the identifier of another follows.
    _part = re.compile(
        "(?:^|:)(" + "|".join(strategy.identifier for strategy in strategies) + "):", re.DOTALL
    )

    def serialize(self, data: Any) -> str:
        parts = self._attempts(data)
        return self.identifier + ":".join(
            f"{part[:IDENTIFIER_LENGTH]}:{part[IDENTIFIER_LENGTH:]}" for part in parts
        )

    def deserialize(self, payload: str) -> Any:
        text = self.chomp(payload)
        pieces = self._part.split(text)
        if pieces[0]:
            raise DeserializationError(
                f"{text[:IDENTIFIER_LENGTH]!r} is no part of {type(self).__name__}"
            )
        return self._first(map("".join, zip(pieces[1::2], pieces[2::2], strict=True)))


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
