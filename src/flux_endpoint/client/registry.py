"""Serializes functions and arguments; registers each function with the service only once."""

from __future__ import annotations

import functools
import hashlib
import inspect
import platform
import textwrap
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flux_endpoint
from flux_endpoint.client.ids import UuidLike, as_uuid
from flux_endpoint.errors import PayloadTooLargeError, SerializationError
from flux_endpoint.functions import CommandFunctionCode, command_arguments
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES, carried_bytes
from flux_endpoint.serialize import ComputeSerializer, State, same_state

#: The most functions that an Executor remembers; a forgotten one is registered again if needed.
MAX_FUNCTIONS = 4096


class FunctionRegistration:
    """A function that the service knows, or will know.

    Args:
        name: name of the function.
        body: the request that registers it, if it is not registered.
        function_id: its id at the service, if it is registered.

    Attributes:
        name: name of the function, for messages.
        body: the request that registers it; `None` after its registration.
        function_id: its id at the service; `None` before its registration.
        may_be_command: whether it is a command function; `False` if that is not known here.
        digest: hash of its name and code; of its id, if only that is known here.
    """

    __slots__ = ("_uncounted", "body", "digest", "function_id", "may_be_command", "name")

    def __init__(
        self, name: str, body: dict[str, Any] | None = None, function_id: str | None = None
    ) -> None:
        self.name = name
        self.body = body
        self.function_id = function_id
        self.may_be_command = False  # unknown if there is only an id
        self._uncounted = 0
        self.digest = _digest(name, body["function_code"] if body else function_id or "").hex()
        if body is not None:
            self.may_be_command = (
                body["meta"].get("serde_identifier") == CommandFunctionCode.identifier[:2]
            )
            self._uncounted = len(body["function_code"])
        if function_id is not None:
            self.registered_as(function_id)

    def registered_as(self, function_id: str) -> None:
        """Set the function's id, and drop its code, which may be large."""
        self.function_id = function_id
        self.body = None
        self._uncounted = 0

    def take_size(self) -> int:
        """Return the size of the code that must still be sent (characters); 0 in later calls."""
        size, self._uncounted = self._uncounted, 0
        return size


def name_of(fn: Callable[..., Any]) -> str:
    """Return the name of a callable; for an object without one, the name of its class."""
    return _unicode(getattr(fn, "__name__", None) or type(fn).__name__)


def _unicode(text: object) -> str:
    """Return `text` with lone surrogates escaped, which could not be sent."""
    return str(text).encode(errors="backslashreplace").decode()


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
        serializer: serializes them.
        name: the function's name, for errors.
        args: positional arguments.
        kwargs: keyword arguments.
        may_be_command: whether the function is a command function, whose arguments are sent as
            JSON if possible.

    Raises:
        SerializationError: the arguments can't be serialized.
        PayloadTooLargeError: they are too large.
        DataStoreError: the serializer's store can't take them.
    """
    if serializer.store is not None and not may_be_command:
        args, kwargs = serializer.store.call(args, kwargs)
    try:
        buffers = command_arguments(serializer, args, kwargs) if may_be_command else None
        if buffers is None:
            packed_kwargs = serializer.serialize(kwargs) if kwargs else _no_kwargs(serializer)
            buffers = [serializer.serialize(args), packed_kwargs]
    except Exception as error:
        raise SerializationError(
            f"the arguments of '{name}' can't be serialized: {_reason(error)}"
        ) from error
    _check_buffers(buffers, f"the arguments of '{name}'")
    return serializer.pack_buffers(buffers)


@functools.lru_cache(maxsize=16)
def _no_kwargs(serializer: ComputeSerializer) -> str:
    return serializer.serialize({})  # most calls need it: half the cost of a small call


def registration_body(
    fn: Callable[..., Any],
    serializer: ComputeSerializer,
    *,
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    public: bool = False,
    group: UuidLike | None = None,
) -> dict[str, Any]:
    """Return the request that registers a function.

    Args:
        fn: the function.
        serializer: serializes it.
        description: text about it; by default its docstring.
        metadata: further values to keep with it.
        public: whether all users may run it.
        group: id of a Globus group.

    Raises:
        TypeError: `fn` is not callable.
        SerializationError: `fn` can't be serialized; the text has its name and the reason.
        PayloadTooLargeError: it is too large.
        ValueError: `group` is not a UUID.
    """
    return _body_of(
        fn,
        _serialized(fn, serializer),
        description=description,
        metadata=metadata,
        public=public,
        group=group,
    )


def _serialized(fn: Callable[..., Any], serializer: ComputeSerializer) -> str:
    if not callable(fn):
        raise TypeError(f"expected a function, got {type(fn).__name__}: {fn!r}")
    try:
        buffer = serializer.serialize(fn)
    except Exception as error:
        raise SerializationError(
            f"function '{name_of(fn)}' can't be serialized: {_reason(error)}"
        ) from error
    _check_buffers([buffer], f"function '{name_of(fn)}'")
    return buffer


def _body_of(
    fn: Callable[..., Any],
    buffer: str,
    *,
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    public: bool = False,
    group: UuidLike | None = None,
) -> dict[str, Any]:
    # Use no docstring for a callable object: it would be that of its class.
    text = description or (inspect.getdoc(fn) if hasattr(fn, "__name__") else None)
    body = _common_body(name_of(fn), text, metadata, public=public, group=group)
    body["meta"] = {**body["meta"], "serde_identifier": buffer[:2]}
    code = ComputeSerializer.pack_buffers([buffer])
    return {**body, "function_code": code, "serialized": True}


def source_body(
    source: str,
    function_name: str,
    *,
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    public: bool = False,
    group: UuidLike | None = None,
) -> dict[str, Any]:
    """Return the request that registers a function as Python source text.

    Args:
        source: the text.
        function_name: name of the function, which the text defines at its top level.
        description: text about it.
        metadata: further values to keep with it.
        public: whether all users may run it.
        group: id of a Globus group.

    Raises:
        ValueError: the text is not valid Python, or does not define the function; or `group` is
            not a UUID.
        PayloadTooLargeError: the text is too large.
    """
    source = _unindented(source)
    try:
        names = compile(source, "<source>", "exec").co_names
    except SyntaxError as error:
        raise ValueError(
            f"source of '{function_name}': line {error.lineno}: {error.msg}"
        ) from error
    if function_name not in names:
        raise ValueError(f"the source defines no '{function_name}' at its top level")
    _check_buffers([source], f"the source of '{function_name}'")
    body = _common_body(function_name, description, metadata, public=public, group=group)
    return {**body, "function_code": source, "serialized": False}


def _unindented(source: str) -> str:
    """Return Python text without common indentation, e.g. that of a method."""
    first = next((line for line in source.splitlines() if line.strip()), "")
    return textwrap.dedent(source) if first[:1].isspace() else source


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
        body["description"] = _unicode(description)
    if public:
        body["public"] = True
    if group is not None:
        body["group"] = str(as_uuid(group, "group"))
    return body


@dataclass(frozen=True, slots=True)
class _Known:
    """A callable and its registration.

    Attributes:
        fn: the callable; kept alive, so that no other object gets the same `id()`.
        registration: its registration.
        serializer: the serializer for it; `None` if the user gave the function's id.
        state: its state at that time, see `ComputeSerializer.state`.
        digest: digest of its name and code at that time.
        asked_for: whether the user registered it, and did not only submit it.
    """

    fn: object
    registration: FunctionRegistration
    serializer: ComputeSerializer | None = None
    state: State | None = None
    digest: bytes = b""
    asked_for: bool = False


class FunctionRegistry:
    """The callables that one Executor knows, and their registrations. Thread-safe.

    A callable that has changed since its registration is registered again. Changes are detected by
    its state. Some callables have no state, e.g. objects and closures over a list: these are
    serialized every time and compared by their code.
    """

    def __init__(self) -> None:
        #: Ids of functions that were registered as source, by text and name.
        self.sources: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()
        self._known: OrderedDict[int, _Known] = OrderedDict()  # by identity
        # Callables with equal name and code share a registration: lambdas in a loop, bound methods.
        self._by_code: OrderedDict[bytes, FunctionRegistration] = OrderedDict()

    def find(self, fn: Callable[..., Any]) -> FunctionRegistration | None:
        """Return the registration of a callable, unless the callable has changed since.

        Args:
            fn: the callable.

        Raises:
            SerializationError: `fn` can't be serialized any more.
        """
        known = self._get(fn)
        if known is None or known.serializer is None:
            return known.registration if known else None
        if same_state(known.state, known.serializer.state(fn)):
            return known.registration
        digest = _digest(name_of(fn), _serialized(fn, known.serializer))
        return known.registration if digest == known.digest else None

    def remember(self, fn: Callable[..., Any], function_id: str) -> None:
        """Use an id for a callable from now on, even if the callable changes.

        Args:
            fn: the callable.
            function_id: its id at the service.
        """
        with self._lock:
            self._store(_Known(fn, FunctionRegistration(name_of(fn), function_id=function_id)))

    def register(
        self,
        fn: Callable[..., Any],
        serializer: ComputeSerializer,
        register: Callable[[dict[str, Any]], str],
        **options: Any,
    ) -> str:
        """Register a callable now and return its id.

        Args:
            fn: the callable.
            serializer: serializes it now, and whenever it may have changed.
            register: sends the request and returns the id.
            options: other arguments of `registration_body`.

        Raises:
            TypeError: `fn` is not callable.
            SerializationError: `fn` can't be serialized, or is too large.
        """
        state = serializer.state(fn)  # before the serialization, to notice a change in between
        buffer = _serialized(fn, serializer)
        body = _body_of(fn, buffer, **options)
        registration = FunctionRegistration(name_of(fn), body)
        function_id = register(body)
        registration.registered_as(function_id)
        digest = _digest(registration.name, buffer)
        with self._lock:
            self._by_code[digest] = registration
            self._store(_Known(fn, registration, serializer, state, digest, asked_for=True))
        return function_id

    def prepare(
        self, fn: Callable[..., Any], serializer: ComputeSerializer
    ) -> FunctionRegistration:
        """Return the registration of a callable in its present state.

        It is serialized if it is new or may have changed; no request is made.

        Args:
            fn: the callable.
            serializer: serializes it, unless it was registered with another one.

        Raises:
            TypeError: `fn` is not callable.
            SerializationError: `fn` can't be serialized, or is too large.
        """
        known = self._get(fn)
        if known is not None and known.serializer is None:
            return known.registration
        asked_for = known is not None and known.asked_for
        if known is not None and known.asked_for:
            serializer = known.serializer or serializer
        state = serializer.state(fn)
        if known is not None and same_state(known.state, state):
            return known.registration
        buffer = _serialized(fn, serializer)
        digest = _digest(name_of(fn), buffer)
        if known is not None and known.digest == digest:
            registration = known.registration
        else:
            registration = self._with_code(digest, fn, buffer)
        with self._lock:
            self._store(_Known(fn, registration, serializer, state, digest, asked_for))
        return registration

    def _get(self, fn: object) -> _Known | None:
        with self._lock:
            known = self._known.get(id(fn))
            if known is not None:
                self._known.move_to_end(id(fn))
            return known

    def _with_code(
        self, digest: bytes, fn: Callable[..., Any], buffer: str
    ) -> FunctionRegistration:
        with self._lock:
            found = self._by_code.get(digest)
            if found is None:
                found = FunctionRegistration(name_of(fn), _body_of(fn, buffer))
                self._by_code[digest] = found
            self._by_code.move_to_end(digest)
            if len(self._by_code) > MAX_FUNCTIONS:
                self._by_code.popitem(last=False)
            return found

    def _store(self, known: _Known) -> None:
        self._known[id(known.fn)] = known
        self._known.move_to_end(id(known.fn))
        if len(self._known) > MAX_FUNCTIONS:
            self._known.popitem(last=False)


def _digest(name: str, buffer: str) -> bytes:
    return hashlib.blake2b(f"{name}\n{buffer}".encode(), digest_size=16).digest()


def _check_buffers(buffers: list[str], what: str) -> None:
    for buffer in buffers:
        if not buffer.isascii() and _unicode(buffer) != buffer:  # would fail the whole request
            raise SerializationError(
                f"{what} serialize to text with lone surrogates in it, which can't be sent: let "
                "the strategy escape them, or use another"
            )
    size = sum(carried_bytes(buffer) for buffer in buffers)
    if size > MAX_PAYLOAD_BYTES:
        raise PayloadTooLargeError(
            f"{what} serialize to {size / 2**20:.1f} MiB ({size} bytes), the limit is "
            f"{MAX_PAYLOAD_BYTES / 2**20:.0f} MiB: put large data into a file that the endpoint "
            "can read, and pass its path; or let it travel by a directory that you share with the "
            "endpoint, Executor(store=SharedDirectory(...)) of flux_endpoint.data"
        )


def _reason(error: Exception) -> str:
    return (
        str(error) if isinstance(error, SerializationError) else f"{type(error).__name__}: {error}"
    )
