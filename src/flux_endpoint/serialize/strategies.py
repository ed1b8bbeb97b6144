"""What a serialization strategy is, and the registry of those that exist."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from flux_endpoint.errors import DeserializationError, SerdeError
from flux_endpoint.serialize.state import State

#: Every buffer starts with so many characters that name its strategy, the last one a newline.
IDENTIFIER_LENGTH = 3


class StrategyError(SerdeError, ValueError):
    """What was given as a strategy is none, or is not of the kind that is needed."""


class SerializationStrategy(ABC):
    """Turns objects of one kind into text and back.

    Defining a subclass that has an `identifier` registers it: one instance serves everybody, so it
    must keep no state.
    """

    #: Two characters of its own and a newline.
    identifier: ClassVar[str]
    #: Whether it is for callables; else it is for everything that is not callable.
    for_code: ClassVar[bool]
    #: Whether it only reads what older releases wrote; it can't be selected then.
    read_only: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "state" not in vars(cls):
            cls.state = SerializationStrategy.state  # type: ignore[method-assign]
        if hasattr(cls, "identifier"):
            _register(cls)

    @classmethod
    def get_cached_by_id(cls, identifier: str) -> SerializationStrategy | None:
        """Return the strategy that `identifier` names."""
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
        """Return `data` as text that starts with `identifier`; raise whatever says why not."""

    @abstractmethod
    def deserialize(self, payload: str) -> Any:
        """Return the object in `payload`; raise whatever says why not."""

    def state(self, data: Any) -> State | None:  # noqa: ARG002 - for those that can tell
        """Return the state of `data`, see `serialize.state`; `None`: only serializing tells.

        Subclasses do not inherit it, since they may write something else.
        """
        return None

    def chomp(self, payload: str) -> str:
        """Return `payload` without the identifier.

        Raises:
            DeserializationError: `payload` starts with another one.
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
    # The same class once more is a module that was loaded again, or a notebook's cell.
    same = (existing.__module__, existing.__qualname__) == (cls.__module__, cls.__qualname__)
    if identifier in _by_identifier and not same:
        raise StrategyError(
            f"{cls.__name__}: identifier {identifier!r} is already used by {existing.__name__}"
        )
    _by_identifier[identifier] = cls()


def all_strategies() -> list[SerializationStrategy]:
    """Return every strategy that is registered now."""
    return list(_by_identifier.values())


def prefer_for_type(type_: type, strategy: type[SerializationStrategy]) -> None:
    """Let objects of exactly `type_` travel with `strategy` where the user has selected none."""
    _by_type[type_] = strategy.instance()


def preferred_strategy(type_: type) -> SerializationStrategy | None:
    """Return the strategy that objects of exactly `type_` prefer."""
    return _by_type.get(type_)
