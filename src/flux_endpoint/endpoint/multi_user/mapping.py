"""The identity mapping: which user of the service runs tasks as which local account.

The file has the official form: a list of mappers of the type
`expression_identity_mapping#1.0.0`, each with rules of `source`, `match` and `output`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flux_endpoint.errors import ConfigurationError

_FIELD = re.compile(r"\{([a-z_]+)\}")
_GROUP = re.compile(r"\{([0-9])\}")
#: Fields of an identity that a `source` may name.
FIELDS = ("sub", "username", "name", "email")


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid")

    comment: str | None = None
    #: What is compared: a text with fields of the identity, such as `{username}`.
    source: str
    #: A regular expression that the whole text must match; with `literal`, the text itself.
    match: str
    #: The local account; `{0}` is the first group of the expression.
    output: str
    literal: bool = False
    ignore_case: bool = False


class _Mapper(BaseModel):
    model_config = ConfigDict(extra="forbid")

    comment: str | None = None
    DATA_TYPE: Literal["expression_identity_mapping#1.0.0"]
    mappings: list[_Rule] = Field(min_length=1)


_FILE = TypeAdapter(list[_Mapper])


@dataclass(frozen=True)
class _Expression:
    """A rule, compiled."""

    source: str
    match: re.Pattern[str]
    output: str

    def account(self, identity: Mapping[str, Any]) -> str | None:
        """Return the account of an identity; `None`: the rule is not about it."""
        missing = [name for name in _FIELD.findall(self.source) if not identity.get(name)]
        if missing:
            return None
        text = _FIELD.sub(lambda field: str(identity[field[1]]), self.source)
        found = self.match.fullmatch(text)
        if found is None:
            return None
        groups = found.groups(default="")
        return _GROUP.sub(lambda group: groups[int(group[1])], self.output)


class IdentityMapping:
    """Maps users to local accounts.

    Args:
        text: the content of the file.
        source: the file, for messages.

    Raises:
        ConfigurationError: the file is invalid; the text says where.
    """

    def __init__(self, text: str, *, source: str) -> None:
        try:
            # Strict: it decides who runs as whom.
            mappers = _FILE.validate_python(json.loads(text), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = "".join(
                f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
            )
            raise ConfigurationError(
                f"{source}: {where.lstrip('.') or 'the whole'}: {first['msg']}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{source}: not valid JSON: {error}") from None
        self._expressions = [
            _compiled(rule, f"{source}: [{i}].mappings[{j}]")
            for i, mapper in enumerate(mappers)
            for j, rule in enumerate(mapper.mappings)
        ]

    def accounts(self, identities: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        """Yield the accounts of a user, in the order of the rules."""
        known = list(identities)
        for expression in self._expressions:
            for identity in known:
                account = expression.account(identity)
                if account:
                    yield account


def _compiled(rule: _Rule, where: str) -> _Expression:
    unknown = [name for name in _FIELD.findall(rule.source) if name not in FIELDS]
    if unknown:
        raise ConfigurationError(
            f"{where}.source: no field is called {unknown[0]!r}; there are: {', '.join(FIELDS)}"
        )
    try:
        pattern = re.compile(
            re.escape(rule.match) if rule.literal else rule.match,
            re.IGNORECASE if rule.ignore_case else 0,
        )
    except re.error as error:
        raise ConfigurationError(f"{where}.match: no regular expression: {error}") from None
    for number in _GROUP.findall(rule.output):
        if int(number) >= pattern.groups:
            raise ConfigurationError(
                f"{where}.output: {{{number}}} is a group that `match` does not have; "
                f"{{0}} is the first of its {pattern.groups}"
            )
    return _Expression(rule.source, pattern, rule.output)
