"""A task in the process that runs it: its environment, its function, its value."""

from __future__ import annotations

import builtins
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Literal

from flux_endpoint.engine.missing_names import advice, missing_module
from flux_endpoint.engine.own_process import ProcessOptionError, own_process
from flux_endpoint.engine.task_timeout import task_timeout
from flux_endpoint.errors import DataStoreError, DeserializationError, SerializationError
from flux_endpoint.functions import MPIFunction, ShellFunction, formatted_task, read_function
from flux_endpoint.functions.fields import quoting_fields
from flux_endpoint.functions.inputs import task_inputs
from flux_endpoint.functions.official import OfficialMPIFunction, OfficialShellFunction
from flux_endpoint.protocol.exceptions import class_names, exception_text
from flux_endpoint.protocol.limits import DEFAULT_OUTPUT, MAX_PAYLOAD_BYTES, carried_bytes
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.serialize import ComputeSerializer, DillCode, task_with_inputs

#: Exact types of values that no task can change.
_IMMUTABLE = frozenset({bool, bytes, complex, float, int, str, type(None)})
_COMMANDS = frozenset({ShellFunction, MPIFunction, OfficialShellFunction, OfficialMPIFunction})


@dataclass(frozen=True)
class TaskSettings:
    """The options of an endpoint's configuration that affect how tasks run."""

    endpoint_id: str
    working_dir: str
    run_in_sandbox: bool
    #: Strategies that may be deserialized; `None`: all.
    allowed_serializers: list[str] | None
    #: Set where only chosen functions may run, so that values in commands are quoted: programs that
    #: treat any argument as data (see `functions.fields.quoting_fields`).
    plain_programs: list[str] | None = None
    #: The most bytes of each output stream of a task that are kept.
    output_limit: int = DEFAULT_OUTPUT

    def directory(self, task_id: str) -> Path:
        """Return the directory in which a task runs."""
        return Path(self.working_dir, task_id) if self.run_in_sandbox else Path(self.working_dir)

    def mark(
        self, kind: Literal["task", "workers", "allocation"], task_id: str | None = None
    ) -> dict[str, str]:
        """Return the mark by which a site's Flux recognizes what a job of this endpoint is for."""
        mark = {"endpoint": self.endpoint_id, "kind": kind}
        return mark if task_id is None else {**mark, "task": task_id}

    def variables(self, task_id: str) -> dict[str, str | None]:
        """Return the environment variables for a task; `None`: the variable must be unset."""
        sandbox = str(self.directory(task_id)) if self.run_in_sandbox else None
        return {"GC_TASK_UUID": task_id, "GC_TASK_SANDBOX_DIR": sandbox}


@dataclass(frozen=True)
class Value:
    """A task's serialized value.

    Attributes:
        data: its text.
        returncode: the command's, if the task was one.
    """

    data: str
    returncode: int | None = None


@dataclass(frozen=True)
class Failure:
    """Why a task has no value.

    Attributes:
        code: the kind of failure.
        text: a text for the task's user, with a traceback where there is one.
        exception: the exception as data; see `protocol.exceptions`.
        raised: the names of its classes, separated by spaces; empty: unknown, or there is none.
    """

    code: ErrorCode
    text: str
    exception: str | None = None
    raised: str = ""


class _TaskSerializer(ComputeSerializer):
    """Reads official command functions as ours, which end with all processes that they started."""

    def __init__(self, allowed: list[str] | None) -> None:
        super().__init__(allowed_deserializer_types=allowed)
        self._cache = FunctionCache()

    def unpack_and_deserialize(self, packed_buffer: str) -> list[Any]:
        (function, args, kwargs), inputs = task_with_inputs(packed_buffer)
        called = self._cache.get(function, self._read)
        if not inputs:
            return [called, self.deserialize(args), self.deserialize(kwargs)]
        with task_inputs([self.deserialize(each) for each in inputs]):
            return [called, self.deserialize(args), self.deserialize(kwargs)]

    def _read(self, payload: str) -> Any:
        function = read_function(payload)
        if function is None:
            return self.deserialize(payload)
        self.allowed_strategy(payload)
        return function


class TaskRunner:
    """Runs tasks in this process, one at a time.

    Args:
        settings: how tasks run here.
    """

    def __init__(self, settings: TaskSettings) -> None:
        self._settings = settings
        self._serializer = _TaskSerializer(settings.allowed_serializers)
        #: The directory of all tasks, unless each has its own.
        self._shared_directory = None if settings.run_in_sandbox else str(settings.directory(""))

    def run(
        self,
        task_id: str,
        buffer: str,
        result_serializers: list[str] | None,
        process: Mapping[str, Any] | None = None,
    ) -> Value | Failure:
        """Run one task; never raises for an error of the task.

        Args:
            task_id: the task.
            buffer: its function and arguments, serialized and packed.
            result_serializers: strategies to try on the value, in order; `None`: the defaults.
            process: its input, directory and variables, `RunOptions.process`. The caller undoes
                them afterwards.
        """
        try:
            self._enter(task_id)
            own = nullcontext() if process is None else own_process(process)
            with own:
                function, args, kwargs = self._unpack(buffer)
                with self._fields(), task_timeout():
                    value = function(*args, **kwargs)
                store = getattr(args, "store", None)  # of arguments that the client's store wrote
                return self._pack(value, result_serializers, _returncode(function, value), store)
        except ProcessOptionError as error:
            return Failure(ErrorCode.COULD_NOT_EXECUTE, f"{type(error).__name__}: {error}")
        except (DeserializationError, SerializationError) as error:
            return Failure(ErrorCode.COULD_NOT_EXECUTE, _text_of(error))
        except BaseException as error:  # noqa: BLE001 - whatever a function raises is its result
            text = _text_of(error)
            names = class_names(error)
            return Failure(ErrorCode.REMOTE_EXECUTION, text, exception_text(error), names)

    def format(self, buffer: str) -> Value | Failure:
        """Return a command task with its arguments formatted into its command, packed again."""
        try:
            with self._fields():
                return Value(formatted_task(*self._unpack(buffer)))
        except BaseException as error:  # noqa: BLE001 - arguments run code of their own
            return Failure(ErrorCode.COULD_NOT_EXECUTE, _text_of(error))

    def _fields(self) -> AbstractContextManager[None]:
        programs = self._settings.plain_programs
        return nullcontext() if programs is None else quoting_fields(programs)

    def _enter(self, task_id: str) -> None:
        """Set the task's environment and working directory."""
        for name, value in self._settings.variables(task_id).items():
            if value is not None:
                os.environ[name] = value
            elif name in os.environ:
                del os.environ[name]
        directory = self._shared_directory or str(self._settings.directory(task_id))
        try:
            os.chdir(directory)
        except FileNotFoundError:
            Path(directory).mkdir(parents=True, exist_ok=True)
            os.chdir(directory)

    def _unpack(self, buffer: str) -> list[Any]:
        try:
            return self._serializer.unpack_and_deserialize(buffer)
        except DataStoreError as error:
            # Without a traceback, which would only have frames of what reads it.
            raise DataStoreError(f"an argument can't be loaded on this worker: {error}") from None
        except Exception as error:
            if missing := missing_module(error):
                raise DeserializationError(
                    f"the task can't be deserialized on this worker: {missing}"
                ) from None
            raise DeserializationError(
                f"the task can't be deserialized on this worker: {error}. The modules that the "
                "function needs must be installed there, and its Python must have the same minor "
                "version as the submitting one."
            ) from error

    def _pack(
        self, value: Any, strategies: list[str] | None, returncode: int | None, store: Any = None
    ) -> Value | Failure:
        try:
            if store is not None and not strategies:
                value = store.offload(value)
            data: str = self._serializer.serialize_result(value, strategies)
        except DataStoreError as error:
            text = f"DataStoreError: the function ran, but its result can't be stored: {error}"
            return Failure(ErrorCode.COULD_NOT_EXECUTE, text)
        except SerializationError as error:
            # Without a traceback, which would have frames of this package and the serializers only.
            return Failure(
                ErrorCode.COULD_NOT_EXECUTE,
                "SerializationError: the function ran, but its result can't be serialized; return "
                f"plain data, or the path of a file. {error}",
            )
        return checked_size(data, returncode)


def checked_size(data: str, returncode: int | None = None) -> Value | Failure:
    """Return a serialized value, or a failure if it is too large."""
    size = carried_bytes(data)
    if size <= MAX_PAYLOAD_BYTES:
        return Value(data, returncode)
    return Failure(
        ErrorCode.MAX_RESULT_SIZE,
        f"MaxResultSizeExceeded({size}, {MAX_PAYLOAD_BYTES}): the result takes {size} bytes "
        f"on the wire, the limit is {MAX_PAYLOAD_BYTES}; write it to a file and return its path, "
        "or let it travel by a shared directory, Executor(store=...)",
    )


def _returncode(function: Any, value: Any) -> int | None:
    if not isinstance(function, ShellFunction):
        return None
    fields = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    code = fields.get("returncode")
    return code if isinstance(code, int) else None


def _text_of(error: BaseException) -> str:
    """Return the traceback of `error` without the frames of this module, and advice."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    advised = advice(error)
    # On the last line, which is what lists of tasks show.
    return f"{text.rstrip()} ({advised})\n" if advised else text


class FunctionCache:
    """The latest function that can be remade.

    A task may change a function's attributes, global variables and default values. The next task
    must not see this, so each task gets a new function with new globals, as if it were unpickled
    again. That is possible for a function whose parts are all immutable, as most are. A command
    function runs no code of the user's in this process, so one object serves all tasks.
    """

    def __init__(self) -> None:
        self._payload = ""
        #: Makes its function; `None`: it must be read again.
        self._make: Callable[[], Any] | None = None

    def get(self, payload: str, read: Callable[[str], Any]) -> Any:
        """Return the function in `payload`.

        Args:
            payload: a serialized function.
            read: deserializes it, if it can't be remade; may raise any error.
        """
        if self._make is not None and self._payload == payload:
            return self._make()
        self._make = None
        function = read(payload)
        if type(function) in _COMMANDS:
            self._make = lambda: function
        elif payload.startswith(DillCode.identifier):  # source is run for each task: it may compute
            recipe = _recipe_of(function)
            self._make = None if recipe is None else recipe.make
        self._payload = payload
        return function


@dataclass(frozen=True, slots=True)
class _Recipe:
    """The parts of a function, since a task may change the function itself."""

    code: CodeType
    name: str
    qualname: str
    module: str
    doc: str | None
    defaults: tuple[Any, ...] | None
    #: The worker's `__main__`, which all functions from a user's `__main__` share.
    shared_globals: dict[str, Any] | None
    own_globals: dict[str, Any]
    #: Names in `own_globals` of the function itself.
    names: tuple[str, ...]

    def make(self) -> FunctionType:
        """Return a new function."""
        variables = self.shared_globals
        if variables is None:
            variables = self.own_globals.copy()
        made = FunctionType(self.code, variables, self.name, self.defaults)
        made.__qualname__, made.__module__, made.__doc__ = self.qualname, self.module, self.doc
        for name in self.names:
            variables[name] = made
        return made


def _recipe_of(function: Any) -> _Recipe | None:
    """Return how to remake a function that no task has called yet; `None` if that may differ."""
    if type(function) is not FunctionType or not _has_immutable_parts(function):
        return None
    shared, own = None, function.__globals__
    names = tuple(name for name, value in own.items() if value is function)
    if own is vars(sys.modules["__main__"]):
        shared, own, names = own, {}, ()
    elif own is getattr(sys.modules.get(function.__module__), "__dict__", None):
        return None  # it was pickled by its name: the module's own function is meant
    if not all(name in names or _is_constant(value) for name, value in own.items()):
        return None
    return _Recipe(
        function.__code__,
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        function.__defaults__,
        shared,
        own.copy(),
        names,
    )


def _has_immutable_parts(function: FunctionType) -> bool:
    others = (
        function.__closure__,
        function.__kwdefaults__,
        function.__annotations__,
        function.__dict__,
        getattr(function, "__type_params__", ()),
    )
    return not any(others) and all(type(v) in _IMMUTABLE for v in function.__defaults__ or ())


def _is_constant(value: Any) -> bool:
    kind = type(value)
    if kind is BuiltinFunctionType:  # others are methods of an object that may change
        return isinstance(value.__self__, ModuleType)
    if kind is type:
        return vars(builtins).get(value.__name__) is value
    return kind in _IMMUTABLE or kind is ModuleType or value is vars(builtins)
