"""The part of Spack's spec syntax that the recipes use: `name@lowest:highest +on ~off key=it`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SPEC = re.compile(
    r"""(?P<name>[a-z0-9][a-z0-9_-]*)?
    (?:@(?P<versions>[0-9a-z.:,_-]+))?
    (?P<rest>(?:[\s]*(?:[+~][\w-]+|[\w-]+=[\w.,/-]+))*)\s*""",
    re.VERBOSE,
)
_VARIANT = re.compile(r"[+~]([\w-]+)|([\w-]+)=")

#: Branch names. To Spack, they are newer than every number.
_INFINITE = ("develop", "main", "master", "head", "trunk", "stable")


@dataclass(frozen=True)
class Spec:
    """One spec; `versions` is "" if it accepts every version."""

    name: str
    versions: str
    variants: frozenset[str]
    dependency: Spec | None = None


def parse(text: str) -> Spec:
    """Parse a spec, which may end with `^dependency`.

    Raises:
        ValueError: it is not a spec, or uses syntax that is not supported here.
    """
    own, _, dependency = text.partition("^")
    found = _SPEC.fullmatch(own.strip())
    if found is None:
        raise ValueError(f"not a spec: {text!r}")
    variants = frozenset(a or b for a, b in _VARIANT.findall(found["rest"] or ""))
    return Spec(
        found["name"] or "",
        found["versions"] or "",
        variants,
        parse(dependency) if dependency else None,
    )


def meets(version: str, ranges: str) -> bool:
    """Return whether a version is in one of several ranges.

    Args:
        version: the version.
        ranges: the ranges, separated by commas. The upper end of a range includes all versions that
            begin with it: 3.13.2 is in `3.11:3.13`.
    """
    return not ranges or any(_is_in(version, each) for each in ranges.split(","))


def _is_in(version: str, wanted: str) -> bool:
    lowest, colon, highest = wanted.partition(":")
    if not colon:
        return _begins_like(version, lowest)
    return (not lowest or _key(version) >= _key(lowest)) and (
        not highest or _key(version) <= _key(highest) or _begins_like(version, highest)
    )


def _begins_like(version: str, beginning: str) -> bool:
    return version == beginning or version.startswith(f"{beginning}.")


def _key(version: str) -> tuple[float, ...]:
    if version in _INFINITE:
        return (float("inf"),)
    return tuple(int(part) for part in version.split("."))
