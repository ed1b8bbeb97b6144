"""Reads pickles as data: no class is looked up, nothing is called, nothing is imported.

It only accepts the opcodes that `pickle` and `dill` write for plain data, and for one object of a
class that is only named; all others are rejected.
"""

from __future__ import annotations

import itertools
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: The most opcodes that are read, since the thread that takes all tasks does this.
MOST_OPCODES = 1 << 17
#: The deepest nesting of data.
DEEPEST = 100
#: The largest data when written out, in characters: a pickle may refer to the same part repeatedly,
#: and so describe far more data than its size suggests.
LARGEST = 1 << 24

#: Size of an element in addition to its text.
_ELEMENT = 16

_NUMBERS_AND_TEXTS = frozenset(
    {
        "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
        "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
        "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
    }
)  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
#: Hashing nested ones could exhaust the stack.
_KEYS = (str, bytes, int, float, bool, type(None))


class NotInertError(ValueError):
    """The pickle does more than describe data, or is malformed, or too large."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The name of a class."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class Instance:
    """An object of a class that is only named."""

    type_: Reference
    state: Any = None


def read_inert(pickled: bytes) -> Any:
    """Return the data in `pickled`.

    Returns:
        Plain data, or an `Instance` whose state may be anything that this module reads. Call
        `require_plain` before using either.

    Raises:
        NotInertError: it is not a pickle, or contains more than data; nothing of it was run.
    """
    try:
        return _Reader().read(pickled)
    except NotInertError:
        raise
    except Exception as error:
        raise NotInertError(f"malformed pickle: {type(error).__name__}: {error}") from error


def require_plain(value: Any) -> None:
    """Raise an error unless `value` is plain data of reasonable size.

    Raises:
        NotInertError: it contains something other than `None`, booleans, numbers, texts, bytes,
            tuples, lists, sets and dictionaries, or is too large or too deep when written out.
    """
    left = LARGEST
    level = [value]
    for _ in range(DEEPEST):
        following: list[Any] = []
        for item in level:
            left -= _size(item)
            if left < 0:
                raise NotInertError(f"more than {LARGEST} characters")
            if isinstance(item, dict):
                following += itertools.chain(item.keys(), item.values())
            elif isinstance(item, (tuple, list, set, frozenset)):
                following += item
            if len(following) * _ELEMENT > left:
                raise NotInertError(f"more than {LARGEST} characters")
        if not following:
            return
        level = following
    raise NotInertError(f"nested more than {DEEPEST} deep")


def _size(item: Any) -> int:
    if isinstance(item, (str, bytes)):
        return len(item) + _ELEMENT
    if isinstance(item, int):
        return item.bit_length() // 3 + _ELEMENT
    if isinstance(item, (type(None), float, tuple, list, set, frozenset, dict)):
        return _ELEMENT
    raise NotInertError(f"{type(item).__name__} is not plain data")


class _Reader:
    """The pickle machine, without the parts that run code."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []

    def read(self, pickled: bytes) -> Any:
        for opcode, argument, _ in itertools.islice(pickletools.genops(pickled), MOST_OPCODES):
            if opcode.name == "STOP":
                (value,) = self._stack
                return value
            self._step(opcode.name, argument)
        raise NotInertError(f"a pickle of more than {MOST_OPCODES} opcodes")

    def _step(self, name: str, argument: Any) -> None:
        if name in _NUMBERS_AND_TEXTS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            self._stack.append(tuple(self._pop(_TUPLES[name])))
        elif (action := _ACTIONS.get(name)) is not None:
            action(self)
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            raise NotInertError(f"opcode {name}")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise NotInertError("the stack is empty")
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return items

    def _pop_mark(self) -> list[Any]:
        return self._pop(len(self._stack) - self._marks.pop())

    def _top(self, type_: type) -> Any:
        if type(self._stack[-1]) is not type_:
            raise NotInertError(f"{type_.__name__} expected")
        return self._stack[-1]

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _memoize(self) -> None:
        self._memo.append(self._stack[-1])

    def _tuple(self) -> None:
        self._stack.append(tuple(self._pop_mark()))

    def _frozenset(self) -> None:
        self._stack.append(frozenset(_keys(self._pop_mark())))

    def _append(self) -> None:
        items = self._pop(1)
        self._top(list).extend(items)

    def _appends(self) -> None:
        items = self._pop_mark()
        self._top(list).extend(items)

    def _additems(self) -> None:
        items = self._pop_mark()
        self._top(set).update(_keys(items))

    def _setitem(self) -> None:
        self._set(self._pop(2))

    def _setitems(self) -> None:
        self._set(self._pop_mark())

    def _set(self, items: list[Any]) -> None:
        self._top(dict).update(zip(_keys(items[::2]), items[1::2], strict=True))

    def _reference(self) -> None:
        module, name = self._pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise NotInertError("a class without a name")
        self._stack.append(Reference(module, name))

    def _new(self) -> None:
        type_, arguments = self._pop(2)
        if not isinstance(type_, Reference) or arguments != ():
            raise NotInertError("an object that is made with arguments")
        self._stack.append(Instance(type_))

    def _build(self) -> None:
        (state,) = self._pop(1)
        self._top(Instance).state = state


def _keys(items: Sequence[Any]) -> Sequence[Any]:
    if not all(isinstance(item, _KEYS) for item in items):
        raise NotInertError("a key that is no text or number")
    return items


_ACTIONS: dict[str, Callable[[_Reader], None]] = {
    "MARK": _Reader._mark,
    "MEMOIZE": _Reader._memoize,
    "TUPLE": _Reader._tuple,
    "FROZENSET": _Reader._frozenset,
    "APPEND": _Reader._append,
    "APPENDS": _Reader._appends,
    "ADDITEMS": _Reader._additems,
    "SETITEM": _Reader._setitem,
    "SETITEMS": _Reader._setitems,
    "STACK_GLOBAL": _Reader._reference,
    "NEWOBJ": _Reader._new,
    "BUILD": _Reader._build,
}
