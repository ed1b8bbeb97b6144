"""The base class of serialization strategies, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from flux_endpoint.errors import DeserializationError, SerdeError
from flux_endpoint.serialize.state import State

#: Every buffer starts with this many characters that identify its strategy, the last a newline.
IDENTIFIER_LENGTH = 3


class StrategyError(SerdeError, ValueError):
    """An object is not a strategy, or is a strategy of the wrong kind."""


class SerializationStrategy(ABC):
    """Converts objects of one kind to text and back.

    Defining a subclass with an `identifier` registers it. All users share one instance, so it must
    not keep state.
    """

    #: Two characters and a newline.
    identifier: ClassVar[str]
    #: Whether it is for callables; else it is for all other objects.
    for_code: ClassVar[bool]
    #: Whether it only reads the data of older releases; it can't be selected then.
    read_only: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "state" not in vars(cls):
            cls.state = SerializationStrategy.state  # type: ignore[method-assign]
        if hasattr(cls, "identifier"):
            _register(cls)

    @classmethod
    def get_cached_by_id(cls, identifier: str) -> SerializationStrategy | None:
        """Return the strategy with this identifier."""
        return _by_identifier.get(identifier)

    @classmethod
    def get_cached_by_class(cls, type_: type[SerializationStrategy]) -> SerializationStrategy:
        """Return the instance of `type_`."""
        return _by_identifier[type_.identifier]

    @classmethod
    def instance(cls) -> Self:
        """Return the instance of this class."""
        found = _by_identifier[cls.identifier]
        if not isinstance(found, cls):
            raise StrategyError(f"{cls.__name__} is not registered as {cls.identifier!r}")
        return found

    @abstractmethod
    def serialize(self, data: Any) -> str:
        """Return `data` as text that starts with `identifier`; may raise any error."""

    @abstractmethod
    def deserialize(self, payload: str) -> Any:
        """Return the object in `payload`; may raise any error."""

    def state(self, data: Any) -> State | None:  # noqa: ARG002 - for those that can tell
        """Return the state of `data`, see `serialize.state`; `None`: only serializing can tell.

        Subclasses do not inherit it, since they may write another text.
        """
        return None

    def chomp(self, payload: str) -> str:
        """Return `payload` without the identifier.

        Raises:
            DeserializationError: `payload` starts with another identifier.
        """
        if not payload.startswith(self.identifier):
            raise DeserializationError(
                f"buffer does not start with {self.identifier!r}, the identifier of "
                f"{type(self).__name__}, but with {payload[:IDENTIFIER_LENGTH]!r}"
            )
        return payload[IDENTIFIER_LENGTH:]


_by_identifier: dict[str, SerializationStrategy] = {}
_by_type: dict[type, SerializationStrategy] = {}


def _register(cls: type[SerializationStrategy]) -> None:
    identifier = cls.identifier
    if len(identifier) != IDENTIFIER_LENGTH:
        raise StrategyError(
            f"{cls.__name__}: identifier must be {IDENTIFIER_LENGTH} characters long, the last one "
            f"a newline; got {identifier!r}"
        )
    if identifier[-1] != "\n":
        raise StrategyError(
            f"{cls.__name__}: identifier must end with a newline character, got {identifier!r}"
        )
    if not isinstance(getattr(cls, "for_code", None), bool):
        raise StrategyError(f"{cls.__name__}: for_code must say whether it is for callables")
    existing = type(_by_identifier.get(identifier))
    # The same class again: a reloaded module, or a notebook cell that was run again.
    same = (existing.__module__, existing.__qualname__) == (cls.__module__, cls.__qualname__)
    if identifier in _by_identifier and not same:
        raise StrategyError(
            f"{cls.__name__}: identifier {identifier!r} is already used by {existing.__name__}"
        )
    _by_identifier[identifier] = cls()


def all_strategies() -> list[SerializationStrategy]:
    """Return all registered strategies."""
    return list(_by_identifier.values())


def prefer_for_type(type_: type, strategy: type[SerializationStrategy]) -> None:
    """Use `strategy` for objects of exactly `type_` if the user has selected no strategy."""
    _by_type[type_] = strategy.instance()


def preferred_strategy(type_: type) -> SerializationStrategy | None:
    """Return the strategy that objects of exactly `type_` prefer."""
    return _by_type.get(type_)
