"""Reads and writes the official package's command functions and results without that package.

They travel as pickles that refer to its classes by name (`globus-compute-sdk` 4.19,
`sdk/shell_function.py` and `sdk/mpi_function.py`). Here such a function is an ordinary
`ShellFunction` or `MPIFunction`, except that calls return results which the official client can
read.
"""

from __future__ import annotations

import base64
import binascii
import pickle
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import dill

from flux_endpoint.errors import DeserializationError
from flux_endpoint.functions.mpi import MPIFunction
from flux_endpoint.functions.result import ShellResult
from flux_endpoint.functions.safe_pickle import (
    Instance,
    NotInertError,
    Reference,
    read_inert,
    require_plain,
)
from flux_endpoint.functions.shell import ShellFunction
from flux_endpoint.serialize import DillCode, DillDataBase64, unpack_buffers

SHELL_MODULE: Final = "globus_compute_sdk.sdk.shell_function"
MPI_MODULE: Final = "globus_compute_sdk.sdk.mpi_function"

#: A pickle of an official class names the class within this many base64 characters.
_BEGINNING = 80
#: Identifier of the byte code in a `CombinedCode` buffer; base64 precedes it.
_COMBINED_PART = re.compile(r"\A10\n(?:[^:]*:)*?01\n:([^:]*)")


class _ByName(type):
    """Metaclass of the classes that replace official ones: dill writes these by name."""


@dill.register(_ByName)  # type: ignore[untyped-decorator]
def _save_name(pickler: Any, cls: type) -> None:
    if cls not in _STANDING_FOR_OFFICIAL:  # a user's subclass
        pickler.dispatch[type](pickler, cls)
        return
    pickler.save(cls.__module__)
    pickler.save(cls.__name__)
    pickler.write(pickle.STACK_GLOBAL)
    pickler.memoize(cls)


class OfficialShellResult(ShellResult, metaclass=_ByName):
    """A `ShellResult` that other readers see as the official one."""


class OfficialShellFunction(ShellFunction, metaclass=_ByName):
    """A `ShellFunction` that others see as the official one, and that returns official results."""

    result_type: ClassVar[type[ShellResult]] = OfficialShellResult


class OfficialMPIFunction(MPIFunction, OfficialShellFunction):
    """An `MPIFunction` that others see as the official one, and that returns official results."""


def _stand_for(cls: type, module: str, name: str) -> None:
    cls.__module__, cls.__name__, cls.__qualname__ = module, name, name


_stand_for(OfficialShellResult, SHELL_MODULE, "ShellResult")
_stand_for(OfficialShellFunction, SHELL_MODULE, "ShellFunction")
_stand_for(OfficialMPIFunction, MPI_MODULE, "MPIFunction")
_FUNCTIONS: dict[tuple[str, str], type[ShellFunction]] = {
    (cls.__module__, cls.__name__): cls for cls in (OfficialShellFunction, OfficialMPIFunction)
}
_STANDING_FOR_OFFICIAL = {OfficialShellResult, *_FUNCTIONS.values()}

#: For `serialize.reading_as`: values of the official package are read as ours.
OUR_RESULT: Final[Mapping[tuple[str, str], type]] = {(SHELL_MODULE, "ShellResult"): ShellResult}


def official_code(function: ShellFunction) -> str:
    """Return a command function as the official package serializes it: a `01` buffer.

    Args:
        function: a `ShellFunction` or `MPIFunction`; not a user's subclass.
    """
    return DillCode.instance().serialize(as_official(function))


def as_official(function: ShellFunction) -> ShellFunction:
    """Return a copy of `function` that travels, and returns results, as the official one."""
    kind = OfficialMPIFunction if isinstance(function, MPIFunction) else OfficialShellFunction
    twin = kind.__new__(kind)
    vars(twin).update(vars(function))
    return twin


def names_official_function(buffer: str) -> bool:
    """Return whether a buffer contains an official command function, readable or not."""
    return _named(_pickle_in(buffer)) is not None


def read_function(buffer: str) -> ShellFunction | None:
    """Return the official command function in a buffer, without unpickling or running anything.

    Returns:
        The function; `None` if it is something else, or has parts that require unpickling.
    """
    pickled = _pickle_in(buffer)
    if pickled is None or _named(pickled) is None:
        return None
    try:
        instance = read_inert(pickled)
        if not isinstance(instance, Instance):
            return None
        require_plain(instance.state)
        return _function(instance.type_, instance.state)
    except (NotInertError, ValueError, TypeError):
        return None


def function_of(value: Any) -> ShellFunction:
    """Return a command function, ours or the official package's, as one of ours.

    Raises:
        DeserializationError: it is something else, or has invalid options.
    """
    kind = type(value)
    if isinstance(value, ShellFunction) and kind not in _STANDING_FOR_OFFICIAL:
        return value
    try:
        return _function(Reference(kind.__module__, kind.__name__), dict(vars(value)))
    except (ValueError, TypeError) as error:
        raise DeserializationError(f"a {kind.__name__} that can't be used: {error}") from error


def read_data(buffer: str) -> Any:
    """Return the arguments in a `00` buffer, without unpickling or running anything.

    Raises:
        NotInertError: it contains more than plain data.
    """
    value = read_inert(_decoded(buffer.removeprefix(DillDataBase64.identifier)))
    require_plain(value)
    return value


def _function(type_: Reference, state: Any) -> ShellFunction:
    kind = _FUNCTIONS.get((type_.module, type_.name))
    if kind is None or not isinstance(state, dict):
        raise NotInertError(f"{type_.module}.{type_.name} is no command function")
    options = dict(state)
    options["name"] = options.pop("__name__")
    return kind(**options)


def _pickle_in(buffer: str) -> bytes | None:
    """Return the pickle in a function's buffer, if it names an official command function."""
    text = _text_in(buffer)
    if text is None:
        return None
    try:
        if b"globus_compute_sdk" not in _decoded(text[:_BEGINNING]):
            return None
        return _decoded(text)
    except NotInertError:
        return None


def _text_in(buffer: str) -> str | None:
    if buffer.startswith("01\n"):
        return buffer[3:]
    if buffer.startswith("12\n"):  # of AllCodeStrategies; the others contain the class's source
        try:
            parts = unpack_buffers(buffer[3:])
        except DeserializationError:
            return None
        return next((part[3:] for part in parts if part.startswith("01\n")), None)
    match = _COMBINED_PART.match(buffer)
    return match[1] if match else None


def _decoded(text: str) -> bytes:
    characters = text.replace("\n", "")
    try:
        return base64.b64decode(characters[: len(characters) // 4 * 4], validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotInertError("no base64") from error


def _named(pickled: bytes | None) -> type[ShellFunction] | None:
    """Return the class that a pickle begins with, without reading the rest."""
    if pickled is None:
        return None
    for (module, name), kind in _FUNCTIONS.items():
        beginning = b"".join(
            b"\x8c" + bytes([len(text)]) + text.encode() + b"\x94" for text in (module, name)
        )
        # Skip the opcodes of protocol and frame.
        if 0 <= pickled.find(beginning + pickle.STACK_GLOBAL, 0, 120) <= 11:
            return kind
    return None
