"""`ComputeSerializer`: converts objects to text and back, with selectable strategies."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Protocol, Self

import dill

from flux_endpoint.errors import DataStoreError, DeserializationError, SerializationError
from flux_endpoint.serialize import diagnosis, packing
from flux_endpoint.serialize.modules import CarriedModules
from flux_endpoint.serialize.selection import (
    Allowlist,
    DeserializerAllowlist,
    Strategylike,
    ValidatedStrategylike,
    registered_strategy,
    validate_strategylike,
)
from flux_endpoint.serialize.state import State
from flux_endpoint.serialize.strategies import (
    IDENTIFIER_LENGTH,
    DillCode,
    DillDataBase64,
    JSONData,
    SerializationStrategy,
    StrategyError,
    all_strategies,
    preferred_strategy,
)

#: The default strategies for functions and for everything else.
DEFAULT_STRATEGY_CODE: SerializationStrategy = DillCode.instance()
DEFAULT_STRATEGY_DATA: SerializationStrategy = DillDataBase64.instance()

# If these strategies fail, a part of the object may be the cause, which is worth searching for.
_BY_PARTS = (DillCode, DillDataBase64, JSONData)


class LargeDataStore(Protocol):
    """The part of `flux_endpoint.data.DataStore` that is used for calls."""

    def call(self, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return arguments as they are to be serialized; large ones are in the store then."""

    def offload(self, value: Any) -> Any:
        """Return a value, or what is unpickled as it, if it is large."""

    def period(self) -> object:
        """Return an object that is another one whenever references should be renewed."""


class ComputeSerializer:
    """Converts functions, arguments and results to text, and back.

    Args:
        strategy_code: strategy for callables; by default `DillCode`, unless the type prefers
            another.
        strategy_data: strategy for everything else; by default `DillDataBase64`.
        allowed_deserializer_types: what `deserialize` may read: at least one strategy or wildcard
            of each kind; `None` or empty: everything.
        modules: modules and packages of Python source, or their names, that travel with each
            function, for endpoints that do not have them; `strategy_code` must be `DillCode`.
        store: keeps large arguments and results, see `flux_endpoint.data`; `strategy_data` must be
            `DillDataBase64`.

    Raises:
        StrategyError: an argument is not a strategy, or of the wrong kind.
        SerializationError: a module can't travel; the text says why.
        ImportError: a module can't be imported here.
    """

    store: LargeDataStore | None = None

    def __init__(
        self,
        strategy_code: Strategylike | None = None,
        strategy_data: Strategylike | None = None,
        allowed_deserializer_types: DeserializerAllowlist | None = None,
        *,
        modules: Iterable[ModuleType | str] = (),
        store: LargeDataStore | None = None,
    ) -> None:
        self._selected_code = strategy_code is not None
        self.code_serializer = (
            DEFAULT_STRATEGY_CODE
            if strategy_code is None
            else validate_strategylike(strategy_code, for_code=True).instance
        )
        self.data_serializer = (
            DEFAULT_STRATEGY_DATA
            if strategy_data is None
            else validate_strategylike(strategy_data, for_code=False).instance
        )
        self._allowed = Allowlist(allowed_deserializer_types or ())
        wanted = [modules] if isinstance(modules, str | ModuleType) else list(modules)
        self._modules = CarriedModules(wanted) if wanted else None
        if wanted and not isinstance(self.code_serializer, DillCode):
            raise StrategyError(
                f"modules travel with functions that DillCode serializes, not with those of "
                f"{type(self.code_serializer).__name__}"
            )
        self.store = store
        self._check_store()

    def _check_store(self) -> None:
        if self.store is not None and not isinstance(self.data_serializer, DillDataBase64):
            raise StrategyError(
                "references to a store are serialized by DillDataBase64, not by "
                f"{type(self.data_serializer).__name__}"
            )

    def with_store(self, store: LargeDataStore | None) -> Self:
        """Return a serializer with the same settings and another store for large data.

        Args:
            store: see `flux_endpoint.data`; `None`: none.

        Raises:
            StrategyError: `strategy_data` is not `DillDataBase64`.
        """
        made = copy.copy(self)
        made.store = store
        made._check_store()
        return made

    @property
    def allowed_deserializer_types(self) -> set[type[SerializationStrategy]]:
        """The strategies that may be deserialized; empty if all may."""
        every = {type(strategy) for strategy in all_strategies() if strategy in self._allowed}
        return every if len(every) < len(all_strategies()) else set()

    def serialize(self, data: Any) -> str:
        """Return `data` as text.

        Args:
            data: any object.

        Raises:
            SerializationError: it can't be serialized; the text names it and the part that fails.
            DataStoreError: its modules are large, and the store can't take them.
        """
        strategy = self._strategy(data)
        try:
            if self._modules is not None and isinstance(strategy, DillCode):
                offload = None if self.store is None else self.store.offload
                return strategy.serialize(self._modules.with_function(data, offload))
            return strategy.serialize(data)
        except DataStoreError:  # says all
            raise
        except Exception as error:
            kind = "Code" if strategy.for_code else "Data"
            raise SerializationError(
                f"{kind} serialization strategy {type(strategy).__name__} failed for "
                f"{diagnosis.described(data)}: {_reason(strategy, data, error)}"
            ) from error

    def state(self, data: Any) -> State | None:
        """Return objects whose identity changes when `serialize(data)` would return another text.

        Args:
            data: any object.

        Returns:
            The state, to be compared by `same_state`; `None` if only serializing can tell.
        """
        if type(self).serialize is not ComputeSerializer.serialize:
            return None
        strategy = self._strategy(data)
        try:
            state = strategy.state(data)
        except Exception:  # noqa: BLE001 - an object may resist being looked into
            return None
        if state is None:
            return None
        # Modules in a store have a lifetime, which each serialization prolongs.
        in_store = self._modules is not None and self.store is not None
        period = self.store.period() if self.store is not None and in_store else None
        return (strategy, self._modules, period, *state)

    def _strategy(self, data: Any) -> SerializationStrategy:
        if not callable(data):
            return self.data_serializer
        own = None if self._selected_code else preferred_strategy(type(data))
        return own or self.code_serializer

    def deserialize(self, payload: str) -> Any:
        """Return the object in a text, written by any allowed strategy.

        Args:
            payload: the text.

        Raises:
            DeserializationError: no strategy, or no allowed one, can read it, or reading it fails.
        """
        strategy = self.allowed_strategy(payload)
        try:
            return strategy.deserialize(payload)
        except DataStoreError:  # says all
            raise
        except Exception as error:
            raise DeserializationError(
                f"{type(strategy).__name__} can't deserialize {_sort(strategy)} here "
                f"(Python {platform.python_version()}, dill {dill.__version__}): "
                f"{_text(error)}{_advice(strategy, error)}"
            ) from error

    def allowed_strategy(self, payload: str) -> SerializationStrategy:
        """Return the strategy that wrote a text.

        Args:
            payload: the text.

        Raises:
            DeserializationError: the strategy is unknown or not allowed.
        """
        identifier = payload[:IDENTIFIER_LENGTH]
        strategy = SerializationStrategy.get_cached_by_id(identifier)
        if strategy is None:
            known = ", ".join(sorted(repr(known.identifier[:-1]) for known in all_strategies()))
            raise DeserializationError(
                f"no serialization strategy has the identifier {identifier!r}; known here are "
                f"{known}"
            )
        self.assert_deserializer_allowed(strategy)
        return strategy

    def assert_deserializer_allowed(self, strategy: SerializationStrategy) -> None:
        """Check that a strategy may be used for reading.

        Args:
            strategy: the strategy.

        Raises:
            DeserializationError: it may not; the text names the allowed ones.
        """
        if strategy in self._allowed:
            return
        raise DeserializationError(
            f"serializer {type(strategy).__name__} disabled: it is not allowed here for "
            f"{_sort(strategy)}; allowed serializers: {self._allowed.names()}"
        )

    @staticmethod
    def serialize_from_list(data: Any, strategies: Iterable[Strategylike] | None = None) -> str:
        """Return `data` as text, written by the first of `strategies` that succeeds.

        Args:
            data: any object.
            strategies: tried in order; `None` or empty: the defaults of `ComputeSerializer()`.

        Raises:
            SerializationError: all fail; the text has each one's reason.
        """
        return _first_that_can(data, strategies, validate_strategylike)

    @staticmethod
    def serialize_result(value: Any, names: Iterable[str] | None = None) -> str:
        """Return a task's result as text, written by the first named strategy that succeeds.

        Args:
            value: any object.
            names: import paths of strategies registered here; nothing is imported. `None` or
                empty: the defaults of `ComputeSerializer()`.

        Raises:
            SerializationError: all fail; the text has each one's reason.
        """
        return _first_that_can(value, names, registered_strategy)

    pack_buffers = staticmethod(packing.pack_buffers)
    unpack_buffers = staticmethod(packing.unpack_buffers)

    def unpack_and_deserialize(self, packed_buffer: str) -> list[Any]:
        """Return function, args and kwargs of a packed task.

        Args:
            packed_buffer: the task's buffer, as `pack_buffers` returns it.

        Raises:
            DeserializationError: there are not exactly three buffers, or one can't be read.
        """
        return [self.deserialize(buffer) for buffer in packing.buffers_of_task(packed_buffer)]

    def check_strategies(
        self, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> list[Any]:
        """Return function, args and kwargs after a round trip through this serializer.

        Args:
            function: the function.
            args: positional arguments of a call.
            kwargs: keyword arguments of a call.

        Raises:
            SerializationError: one of them can't be serialized.
            DeserializationError: one of them can't be read again.
        """
        buffers = [self.serialize(part) for part in (function, args, kwargs)]
        return self.unpack_and_deserialize(packing.pack_buffers(buffers))


def _first_that_can(
    data: Any,
    strategies: Iterable[Strategylike] | None,
    find: Callable[..., ValidatedStrategylike],
) -> str:
    failures: list[tuple[str, str, Exception]] = []
    default = _default_for(data)
    for given in list(strategies or ()) or [default]:
        try:
            is_valid = given is default
            strategy = default if is_valid else find(given, for_code=callable(data)).instance
        except StrategyError as error:
            name = given if isinstance(given, str) else _class_name(given)
            failures.append((name, str(error), error))
            continue
        try:
            return strategy.serialize(data)
        except Exception as error:  # noqa: BLE001 - whatever an object raises when it is pickled
            failures.append((_class_name(strategy), _reason(strategy, data, error), error))
    reasons = "".join(f"\n- {name}: {reason}" for name, reason, _ in failures)
    raise SerializationError(
        f"All strategies failed. For {diagnosis.described(data)}:{reasons}"
    ) from ExceptionGroup("strategies", [error for _, _, error in failures])


def _default_for(data: Any) -> SerializationStrategy:
    if not callable(data):
        return DEFAULT_STRATEGY_DATA
    return preferred_strategy(type(data)) or DEFAULT_STRATEGY_CODE


def _class_name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


def _reason(strategy: SerializationStrategy, data: Any, error: Exception) -> str:
    if isinstance(strategy, _BY_PARTS):
        return diagnosis.reason(data, error, strategy.serialize)
    return _text(error) if isinstance(error, SerializationError) else diagnosis.plain(error)


def _sort(strategy: SerializationStrategy) -> str:
    return "functions" if strategy.for_code else "data"


def _text(error: Exception) -> str:
    named = isinstance(error, (SerializationError, DeserializationError))
    return str(error) if named else diagnosis.plain(error)


def _advice(strategy: SerializationStrategy, error: Exception) -> str:
    if isinstance(error, ImportError):
        return ". What it needs must be installed on this side too"
    if strategy.for_code and not isinstance(error, DeserializationError):
        return ". Byte code needs the same minor version of Python on both sides"
    return ""
