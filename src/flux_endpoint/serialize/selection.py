"""Selects strategies by instance, class or import path, and checks allow-lists of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from flux_endpoint.serialize.strategies import (
    SerializationStrategy,
    StrategyError,
    all_strategies,
)

#: A strategy's instance, its class, or the import path of either.
Strategylike = SerializationStrategy | type[SerializationStrategy] | str

#: Modules of the official strategies; ours of the same names replace them.
_OFFICIAL_HOMES = ("globus_compute_sdk.serialize.concretes", "globus_compute_sdk.serialize")


class AllowlistWildcard(StrEnum):
    """Entries of an allow-list that mean all strategies of a kind."""

    CODE = "globus_compute_sdk.*Code"
    DATA = "globus_compute_sdk.*Data"


#: Entries of an allow-list: strategies and wildcards. `flux_endpoint.*Code` equals `CODE`.
DeserializerAllowlist = Iterable[Strategylike | AllowlistWildcard]


@dataclass(frozen=True)
class ValidatedStrategylike:
    """A strategy, and an import path by which both our and the official endpoint know it."""

    type_: type[SerializationStrategy]
    instance: SerializationStrategy
    import_path: str


def validate_strategylike(
    value: Strategylike, *, for_code: bool | None = None
) -> ValidatedStrategylike:
    """Return the strategy that `value` refers to.

    Args:
        value: a strategy's instance, its class, or the import path of either.
        for_code: whether it must be a strategy for code (or for data); `None`: either.

    Raises:
        StrategyError: `value` is not a strategy, can only read, or is of the wrong kind.
    """
    found = _resolve(value) if isinstance(value, str) else value
    class_ = found if isinstance(found, type) else type(found)
    if class_.__module__ in _OFFICIAL_HOMES:  # an object of the official package
        class_ = _named(class_.__name__) or class_
    if not issubclass(class_, SerializationStrategy) or not hasattr(class_, "identifier"):
        raise StrategyError(_invalid(value, for_code))
    if class_.read_only:
        raise StrategyError(f"{class_.__name__} only reads old functions. {_known(for_code)}")
    if for_code is not None and class_.for_code != for_code:
        wanted, given = ("code", "data") if for_code else ("data", "code")
        raise StrategyError(
            f"{class_.__name__} is a {given} serialization strategy, expected a {wanted} strategy. "
            f"{_known(for_code)}"
        )
    ours = class_.__module__.startswith("flux_endpoint.serialize.")
    home = _OFFICIAL_HOMES[0] if ours else class_.__module__
    return ValidatedStrategylike(class_, class_.instance(), f"{home}.{class_.__qualname__}")


def registered_strategy(
    value: Strategylike, *, for_code: bool | None = None
) -> ValidatedStrategylike:
    """Return the strategy that another party refers to; nothing is imported for a path.

    Args:
        value: as of `validate_strategylike`; a path must be that of a registered strategy.
        for_code: whether it must be a strategy for code (or for data); `None`: either.

    Raises:
        StrategyError: no such strategy is registered, it can only read, or is of the wrong kind.
    """
    if not isinstance(value, str):
        return validate_strategylike(value, for_code=for_code)
    module, _, name = value.rpartition(".")
    for class_ in map(type, all_strategies()):
        if class_.__qualname__ == name and module in {class_.__module__, *_homes(class_)}:
            return validate_strategylike(class_, for_code=for_code)
    raise StrategyError(
        f"no serialization strategy {value[:200]!r} is registered where the task ran: the module "
        f"that defines it must have been imported there. {_known(for_code)}"
    )


def _homes(class_: type[SerializationStrategy]) -> tuple[str, ...]:
    return _OFFICIAL_HOMES if class_.__module__.startswith("flux_endpoint.serialize.") else ()


def _resolve(path: str) -> object:
    module, _, name = path.rpartition(".")
    if module in _OFFICIAL_HOMES:
        return _named(name)
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        reason = f" (it can't be imported: {type(error).__name__}: {error})"
        raise StrategyError(_invalid(path, None, reason)) from error


def _invalid(value: object, for_code: bool | None, reason: str = "") -> str:
    return (
        f"Invalid strategy-like {value!r}{reason}. {_known(for_code)}; give an instance, "
        "a subclass of SerializationStrategy, or an import path to one"
    )


def _named(name: str) -> type[SerializationStrategy] | None:
    return next((type(s) for s in all_strategies() if type(s).__name__ == name), None)


def _known(for_code: bool | None) -> str:
    names = sorted(
        type(strategy).__name__
        for strategy in all_strategies()
        if not strategy.read_only and for_code in {None, strategy.for_code}
    )
    return f"Known are {', '.join(names)}"


class Allowlist:
    """The strategies that may deserialize.

    Args:
        entries: strategies and wildcards, at least one of each kind (code and data).
    """

    def __init__(self, entries: Iterable[Strategylike]) -> None:
        given = list(entries)
        self.types: set[type[SerializationStrategy]] = set()
        self._kinds: set[bool] = set()
        for entry in given:
            kind = self._kind(entry)
            if kind is None:
                self.types.add(validate_strategylike(entry).type_)
            else:
                self._kinds.add(kind)
        specific = {type_.for_code for type_ in self.types}
        if specific & self._kinds:
            kind = (specific & self._kinds).pop()
            wildcard = AllowlistWildcard.CODE if kind else AllowlistWildcard.DATA
            raise StrategyError(
                f"Cannot mix '{wildcard}' with specific deserializers: allow-list {given}"
            )
        if given and len(specific | self._kinds) != 2:
            raise StrategyError(
                "Deserialization allow-lists need at least one code and one data strategy or "
                f"wildcard, got {given}. Wildcards are {', '.join(AllowlistWildcard)}. "
                f"{_known(None)}"
            )

    @staticmethod
    def _kind(entry: object) -> bool | None:
        if not isinstance(entry, str):
            return None
        try:
            wildcard = AllowlistWildcard(entry.replace("flux_endpoint.*", "globus_compute_sdk.*"))
        except ValueError:
            return None
        return wildcard is AllowlistWildcard.CODE

    def __contains__(self, strategy: SerializationStrategy) -> bool:
        if not self.types and not self._kinds:
            return True
        by_kind = strategy.for_code in self._kinds and not strategy.read_only
        return by_kind or type(strategy) in self.types

    def names(self) -> str:
        """Return the names of all allowed strategies."""
        allowed = [type(strategy).__name__ for strategy in all_strategies() if strategy in self]
        return ", ".join(sorted(allowed))
