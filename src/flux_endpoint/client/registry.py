"""Functions on their way to the service: serialized once, registered once."""

from __future__ import annotations

import functools
import hashlib
import inspect
import platform
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import flux_endpoint
from flux_endpoint.client.ids import UuidLike, as_uuid
from flux_endpoint.errors import PayloadTooLargeError, SerializationError
from flux_endpoint.functions import CommandFunctionCode, command_arguments
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES, carried_bytes
from flux_endpoint.serialize import ComputeSerializer

#: How many functions an Executor remembers; one that was forgotten is registered again when needed.
MAX_FUNCTIONS = 4096


class FunctionRegistration:
    """A function as the service knows it, or will: `function_id` is `None` until then."""

    __slots__ = ("body", "function_id", "name")

    def __init__(
        self, name: str, body: dict[str, Any] | None = None, function_id: str | None = None
    ) -> None:
        self.name = name
        self.body = body
        self.function_id = function_id

    @property
    def may_be_command(self) -> bool:
        """Whether the function is a command function, as far as is known here."""
        if self.body is None:  # registered by somebody else
            return True
        identifier = self.body["meta"].get("serde_identifier")
        return bool(identifier == CommandFunctionCode.identifier[:2])


def name_of(fn: Callable[..., Any]) -> str:
    """Return what to call `fn`; objects that only are callable go by the name of their class."""
    return getattr(fn, "__name__", None) or type(fn).__name__


def serialize_call(
    serializer: ComputeSerializer,
    name: str,
    args: Any,
    kwargs: Mapping[str, Any],
    *,
    may_be_command: bool,
) -> str:
    """Return the packed arguments of one call.

    Args:
        serializer: how to serialize them.
        name: the function's, for errors.
        args: positional arguments.
        kwargs: keyword arguments.
        may_be_command: whether the function may be a command function, whose arguments an
            endpoint reads without unpickling them.

    Raises:
        SerializationError: they can't be serialized.
        PayloadTooLargeError: they are over the limit.
    """
    try:
        buffers = command_arguments(serializer, args, kwargs) if may_be_command else None
        if buffers is None:
            packed_kwargs = serializer.serialize(kwargs) if kwargs else _no_kwargs(serializer)
            buffers = [serializer.serialize(args), packed_kwargs]
    except Exception as error:
        raise SerializationError(
            f"the arguments of '{name}' can't be serialized: {_reason(error)}"
        ) from error
    _check_size(buffers, f"the arguments of '{name}'")
    return serializer.pack_buffers(buffers)


@functools.lru_cache(maxsize=16)
def _no_kwargs(serializer: ComputeSerializer) -> str:
    return serializer.serialize({})  # what most calls have: half the cost of a small one


def registration_body(
    fn: Callable[..., Any],
    serializer: ComputeSerializer,
    *,
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    public: bool = False,
    group: UuidLike | None = None,
) -> dict[str, Any]:
    """Return the request that registers `fn`.

    Raises:
        TypeError: `fn` is not callable.
        SerializationError: `fn` can't be serialized; the text has its name and the reason.
        PayloadTooLargeError: it is over the limit.
    """
    if not callable(fn):
        raise TypeError(f"expected a function, got {type(fn).__name__}: {fn!r}")
    name = name_of(fn)
    try:
        buffer = serializer.serialize(fn)
    except Exception as error:
        raise SerializationError(
            f"function '{name}' can't be serialized: {_reason(error)}"
        ) from error
    _check_size([buffer], f"function '{name}'")
    # A callable object's class docstring does not describe this object.
    text = description or (inspect.getdoc(fn) if hasattr(fn, "__name__") else None)
    body = _common_body(name, text, metadata, public=public, group=group)
    body["meta"] = {**body["meta"], "serde_identifier": buffer[:2]}
    return {**body, "function_code": serializer.pack_buffers([buffer]), "serialized": True}


def source_body(
    source: str,
    function_name: str,
    *,
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    public: bool = False,
    group: UuidLike | None = None,
) -> dict[str, Any]:
    """Return the request that registers `function_name` of the Python text `source`.

    Raises:
        ValueError: the text is no Python, or has no such function.
        PayloadTooLargeError: it is over the limit.
    """
    try:
        names = compile(source, "<source>", "exec").co_names
    except SyntaxError as error:
        raise ValueError(
            f"source of '{function_name}': line {error.lineno}: {error.msg}"
        ) from error
    if function_name not in names:
        raise ValueError(f"the source defines no '{function_name}' at its top level")
    _check_size([source], f"the source of '{function_name}'")
    body = _common_body(function_name, description, metadata, public=public, group=group)
    return {**body, "function_code": source, "serialized": False}


def _common_body(
    name: str,
    description: str | None,
    metadata: Mapping[str, Any] | None,
    *,
    public: bool,
    group: UuidLike | None,
) -> dict[str, Any]:
    versions = {
        "python_version": platform.python_version(),
        "sdk_version": flux_endpoint.__version__,
    }
    body: dict[str, Any] = {"function_name": name, "meta": {**versions, **(metadata or {})}}
    if description:
        body["description"] = description
    if public:
        body["public"] = True
    if group is not None:
        body["group"] = str(as_uuid(group, "group"))
    return body


class FunctionRegistry:
    """The functions that one Executor has seen. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By identity: the entry keeps its function alive, so that the id is not given to another.
        self._seen: OrderedDict[int, tuple[object, object, FunctionRegistration]] = OrderedDict()
        # Equal code under equal name is one function: lambdas in a loop, bound methods.
        self._by_code: OrderedDict[bytes, FunctionRegistration] = OrderedDict()

    def find(self, fn: object) -> FunctionRegistration | None:
        """Return what `fn` was registered as, whichever way."""
        with self._lock:
            entry = self._seen.get(id(fn))
        return entry[2] if entry else None

    def remember(self, fn: object, registration: FunctionRegistration) -> None:
        """Take `registration` for `fn` from now on, whatever the serializer."""
        with self._lock:
            self._store(fn, None, registration)

    def prepare(
        self, fn: Callable[..., Any], serializer: ComputeSerializer
    ) -> FunctionRegistration:
        """Return the registration of `fn`, serialized with `serializer` if it is new.

        Raises:
            TypeError: `fn` is not callable.
            SerializationError: `fn` can't be serialized.
        """
        with self._lock:
            entry = self._seen.get(id(fn))
            if entry and (entry[1] is serializer or entry[1] is None):
                self._seen.move_to_end(id(fn))
                return entry[2]
        body = registration_body(fn, serializer)
        text = f"{body['function_name']}\n{body['function_code']}"
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        with self._lock:
            registration = self._by_code.get(digest)
            if registration is None:
                registration = FunctionRegistration(body["function_name"], body)
                self._by_code[digest] = registration
                if len(self._by_code) > MAX_FUNCTIONS:
                    self._by_code.popitem(last=False)
            self._store(fn, serializer, registration)
        return registration

    def _store(
        self, fn: object, serializer: object | None, registration: FunctionRegistration
    ) -> None:
        self._seen[id(fn)] = (fn, serializer, registration)
        self._seen.move_to_end(id(fn))
        if len(self._seen) > MAX_FUNCTIONS:
            self._seen.popitem(last=False)


def _check_size(buffers: list[str], what: str) -> None:
    size = sum(carried_bytes(buffer) for buffer in buffers)
    if size > MAX_PAYLOAD_BYTES:
        raise PayloadTooLargeError(
            f"{what} serialize to {size / 2**20:.1f} MiB ({size} bytes), the limit is "
            f"{MAX_PAYLOAD_BYTES / 2**20:.0f} MiB: put large data into a file that the endpoint "
            "can read, and pass its path"
        )


def _reason(error: Exception) -> str:
    return (
        str(error) if isinstance(error, SerializationError) else f"{type(error).__name__}: {error}"
    )
