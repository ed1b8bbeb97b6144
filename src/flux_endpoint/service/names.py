"""Names of users and groups: which are valid, and which are easily confused."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

#: Scripts with letters that look like letters of another script.
_CONFUSABLE_SCRIPTS = frozenset({"ARMENIAN", "CHEROKEE", "COPTIC", "CYRILLIC", "GREEK", "LATIN"})
#: Invisible characters that Python counts as printable, as ranges (first, last).
_INVISIBLE = (
    ("\u034f", "\u034f"),
    ("\u115f", "\u1160"),
    ("\u17b4", "\u17b5"),
    ("\u180b", "\u180f"),
    ("\ufe00", "\ufe0f"),
    ("\U000e0100", "\U000e01ef"),
)


def fault_of(name: str) -> str | None:
    """Return the rule that a name breaks, worded to follow "it must"; `None`: it is valid."""
    if not 0 < len(name) <= 256 or not name.isprintable() or name == "*":
        return "have 1 to 256 printable characters, and not be '*'"
    if name != name.strip(" ") or "  " in name:
        return "have no blanks at its ends, nor two in a row"
    if name != unicodedata.normalize("NFKC", name):
        return "be in Unicode's form NFKC, which has one way to write what looks the same"
    if any(first <= each <= last for each in name for first, last in _INVISIBLE):
        return "have no characters that can't be seen"
    scripts = {unicodedata.name(each, "").partition(" ")[0] for each in name if each.isalpha()}
    if len(found := sorted(scripts & _CONFUSABLE_SCRIPTS)) > 1:
        return f"not mix letters that look alike, of {' and '.join(map(str.title, found))}"
    return None


def similar_name(name: str, others: Iterable[str]) -> str | None:
    """Return the name among `others` that differs from `name` in case only, or `None`.

    Args:
        name: a name.
        others: names to compare with; `name` itself is ignored.
    """
    folded = unicodedata.normalize("NFKC", name.casefold())
    for other in others:
        if other != name and unicodedata.normalize("NFKC", other.casefold()) == folded:
            return other
    return None
