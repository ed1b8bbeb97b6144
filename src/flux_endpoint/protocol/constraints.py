"""Node constraints as text (RFC 35), as in `flux run --requires`, parsed into RFC 31's object.

amd and host:node[1-3]
amd,fast -drained
rank:0-3 or not (host:a or host:b)
"""

from __future__ import annotations

import re
from typing import Any

_NAMES = {"host": "hostlist", "hosts": "hostlist", "rank": "ranks"}
_TOKEN = re.compile(
    r"""\s*(?:(?P<negate>-)|(?P<not>not\b)|(?P<and>&{1,2}|and\b)|(?P<or>\|{1,2}|or\b)"""
    r"""|(?P<open>\()|(?P<close>\))|(?P<term>[^()|&\s"']+)|(?P<quoted>'[^']+'|"[^"]+"))"""
)
#: How strongly each token binds its left operand. Adjacent terms are joined by `and`, but more
#: weakly: `a or b c` is `(a or b) and c`, as in Flux.
_STRENGTH = {"term": 0, "open": 0, "or": 1, "and": 2, "not": 3, "negate": 4}

_Constraint = dict[str, list[Any]]


def parse_constraints(text: str) -> dict[str, Any]:
    """Return the RFC 31 object of `text`.

    Raises:
        ValueError: the text can't be parsed; the error says why.
    """
    tokens = _tokens(text)
    parser = _Parser(tokens)
    whole = parser.expression()
    if tokens:
        raise ValueError(f"'{tokens[0][1]}' is out of place")
    return whole


def _tokens(text: str) -> list[tuple[str, str]]:
    """Return kind and text of each token; a quoted text is a term, or the end of one."""
    found: list[tuple[str, str]] = []
    at, begun = 0, ""
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"a quote is not closed: {text[at:].strip()}")
        at = match.end()
        kind = str(match.lastgroup)
        word = match[kind]
        if kind not in ("term", "quoted"):
            found.append((kind, word))
            continue
        word = word[1:-1] if kind == "quoted" else word
        if word.endswith(":") and not begun:
            begun = word
        else:
            found.append(("term", begun + word))
            begun = ""
    if begun:
        raise ValueError(f"nothing comes after '{begun}'")
    return found


class _Parser:
    """Consumes tokens from a list."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens

    def expression(self, strength: int = -1) -> _Constraint:
        """Return the expression up to the first token that binds no stronger than `strength`."""
        left = self._operand()
        while self._tokens and _STRENGTH.get(self._tokens[0][0], -1) > strength:
            if self._tokens[0][0] == "or":
                self._tokens.pop(0)
                left = _either(left, self.expression(_STRENGTH["or"]))
                continue
            if self._tokens[0][0] == "and":
                self._tokens.pop(0)
            left = _both(left, self.expression(_STRENGTH["and"]))
        return left

    def _operand(self) -> _Constraint:
        kind, word = self._next()
        if kind == "term":
            return _term(word)
        if kind == "not":
            return {"not": [self.expression(_STRENGTH["and"])]}
        if kind == "negate" and self._tokens and self._tokens[0][0] == "term":
            return {"not": [_term(self._next()[1])]}
        if kind != "open":
            raise ValueError(f"'{word}' is out of place")
        inner = self.expression()
        if not self._tokens or self._next()[0] != "close":
            raise ValueError("a parenthesis is not closed")
        return inner

    def _next(self) -> tuple[str, str]:
        if not self._tokens:
            raise ValueError("something is missing at its end")
        return self._tokens.pop(0)


def _term(word: str) -> _Constraint:
    name, colon, value = word.partition(":")
    if not colon:
        name, value = "properties", word
    operator = _NAMES.get(name, name)
    if not re.fullmatch(r"[\w.+@-]+", operator):
        raise ValueError(f"'{name}:' is no operator; there are host, rank and properties")
    return {operator: value.split(",") if operator == "properties" else [value]}


def _both(left: _Constraint, right: _Constraint) -> _Constraint:
    if "and" in left:
        left["and"].append(right)
        return left
    if "properties" in left and "properties" in right:
        return {"properties": [*left["properties"], *right["properties"]]}
    return {"and": [left, right]}


def _either(left: _Constraint, right: _Constraint) -> _Constraint:
    if "or" in left:
        left["or"].append(right)
        return left
    return {"or": [left, right]}
