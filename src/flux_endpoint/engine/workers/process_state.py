"""The process state of a worker that tasks may change, and its restoration after each task.

All of this runs after each task, so it must be cheap: at most one system call for each item.
Changes that can't be undone cheaply or reliably are a reason to replace the worker: a fork of the
template takes milliseconds. Modules and their contents (caches, connections) are left alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import gc
import locale
import os
import resource
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import FrameType
from typing import IO, Any, cast

from flux_endpoint.engine.workers.pipes import WorkerPipes, read_all

#: Our descriptors are moved to this number or higher, out of the range that tasks may close.
_OUT_OF_THE_WAY = 500
#: The per-task variables, which are set for each task.
_PER_TASK = frozenset({b"GC_TASK_UUID", b"GC_TASK_SANDBOX_DIR"})
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SIGNALS = tuple(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
_IMPORT = "<frozen importlib._bootstrap>"
#: Seconds that a worker waits for its manager to read its output.
_TOKEN_TIMEOUT = 10.0
_LINE_BUFFERED = 1  # _IOLBF of <stdio.h>

#: The functions of `signal` without their wrappers, which take ten times as long.
_plain = sys.modules["_signal"]
_getsignal: Callable[[int], Any] = _plain.getsignal
_signal: Callable[[int, Any], Any] = _plain.signal
_pthread_sigmask: Callable[[int, Iterable[int]], set[int]] = _plain.pthread_sigmask
#: Each is a single call of a C function.
stop_real_timer, stop_virtual_timer, stop_profiling_timer = (
    functools.partial(signal.setitimer, timer, 0) for timer in _TIMERS
)


def out_of_the_way(descriptor: int) -> int:
    """Move a descriptor to a high number with close-on-exec; return the number."""
    for lowest in (_OUT_OF_THE_WAY, 100, 3):
        with suppress(OSError):  # the limit of descriptors may be too low
            moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
            os.close(descriptor)
            return int(moved)
    return descriptor


class ProcessState:
    """The state of this process between tasks, as it is when this object is created.

    Create and use it once, on the main thread of a process without other threads.
    """

    def __init__(self) -> None:
        self._signals = _Signals()
        self._streams = _Streams()
        self._environment = _Environment()
        self._interpreter = _interpreter()
        self._first_path = list(sys.path)
        self._path = list(sys.path)
        self._umask = os.umask(0o22)
        os.umask(self._umask)
        self._locale = locale.setlocale(locale.LC_ALL)
        self._zone = time.tzname
        self._scheduling = _scheduling()
        self._limits = _Limits()
        self._threads = set(threading.enumerate())
        #: Threads that modules started while they were imported.
        self._of_modules: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._note_threads()
        self._most_descriptors = os.sysconf("SC_OPEN_MAX") // 2

    def _note_threads(self) -> None:
        start = threading.Thread.start

        @functools.wraps(start)
        def noting(thread: threading.Thread) -> None:
            if _is_importing():
                self._of_modules.add(thread)
            start(thread)

        threading.Thread.start = noting  # type: ignore[assignment, method-assign]

    def restore(self) -> str:
        """Undo a task's changes; return why this process can't go on, or an empty text."""
        self._signals.disarm()  # first: timers of the task must not interrupt the rest
        trace, profile, *_ = self._interpreter
        if sys.gettrace() is not trace or sys.getprofile() is not profile:
            sys.settrace(trace)
            sys.setprofile(profile)
        return next(filter(None, self._reasons()), "")

    def _reasons(self) -> Iterator[str]:
        yield self._signals.restore()
        yield self._streams.restore()
        self._environment.restore()
        os.umask(self._umask)
        yield self._restore_locale()
        if _interpreter() != self._interpreter:
            _, _, limit, interval, collects = self._interpreter
            sys.setrecursionlimit(limit)
            sys.setswitchinterval(interval)
            (gc.enable if collects else gc.disable)()
        if sys.path != self._path:
            self._restore_path()
        if _scheduling() != self._scheduling:
            yield "a task has changed its priority or its CPUs"
        yield self._limits.restore()
        if _lowest_free_descriptor() > self._most_descriptors:
            yield "its tasks have left half of the descriptors open that it may have"
        if threading.active_count() > 1:
            yield self._left_threads()

    def _restore_path(self) -> None:
        """Keep added entries, since imported modules came from there; restore missing ones.

        The path must not grow with each task.
        """
        now = sys.path if isinstance(sys.path, list | tuple) else ()
        places = [each for each in now if isinstance(each, str)]
        sys.path = list(dict.fromkeys([*places, *self._first_path]))
        self._path = list(sys.path)

    def _restore_locale(self) -> str:
        if locale.setlocale(locale.LC_ALL) != self._locale:
            try:
                locale.setlocale(locale.LC_ALL, self._locale)
            except locale.Error:
                return f"a task has changed the locale, and {self._locale} can't be set again"
        if time.tzname != self._zone:  # changed by tzset; TZ itself is restored
            time.tzset()
            self._zone = time.tzname
        return ""

    def _left_threads(self) -> str:
        """Return why threads left by the last task prevent the process from going on.

        Daemon threads may stay, and pools keep their threads; modules or objects that are kept may
        need them. Threads that a module starts while it is imported belong to the module: the
        official SDK, for example, starts a thread that waits for the end of the process.
        """
        pools = sys.modules.get("concurrent.futures.thread")
        kept = getattr(pools, "_threads_queues", ())
        current = set(threading.enumerate())
        for thread in current - self._threads - set(self._of_modules):
            if not thread.daemon and thread not in kept:
                return f"a task has left the thread {thread.name} running"
        self._threads = current
        return ""

    @property
    def has_threads(self) -> bool:
        """Whether other threads were kept."""
        return threading.active_count() > 1


class _Signals:
    """Signal handlers, the signal mask, and sources of signals."""

    def __init__(self) -> None:
        self._handlers = list(map(_getsignal, _SIGNALS))
        self._mask = _pthread_sigmask(signal.SIG_BLOCK, ())

    def disarm(self) -> None:
        """Stop timers, and the watchdog thread of `faulthandler`."""
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        if (watchdog := sys.modules.get("faulthandler")) is not None:
            watchdog.cancel_dump_traceback_later()

    def restore(self) -> str:
        signal.set_wakeup_fd(-1)
        if _pthread_sigmask(signal.SIG_BLOCK, ()) != self._mask:
            # A pending signal would hit the next task, or this process, if it were unblocked.
            return "a task has blocked or unblocked signals"
        # SIGCHLD may be ignored, also by a C library; then exit codes of commands would be lost.
        _signal(signal.SIGCHLD, _plain.SIG_DFL)
        handlers = list(map(_getsignal, _SIGNALS))
        if handlers != self._handlers:
            for number, now, before in zip(_SIGNALS, handlers, self._handlers, strict=True):
                if now != before and before is not None:  # None: not installed by Python
                    _signal(number, before)
        return ""


class _Streams:
    """Descriptors 0 to 2, and Python's streams on them."""

    def __init__(self) -> None:
        self._copies = [out_of_the_way(os.dup(number)) for number in range(3)]
        self._streams = [self._new(number) for number in range(3)]
        self._put()

    @staticmethod
    def _new(number: int) -> IO[str]:
        # A task that closes the stream leaves the descriptor open. Output is written at once, for
        # people who follow the log, and never fails on a character.
        return cast(
            "IO[str]",
            open(
                number,
                "w" if number else "r",
                buffering=1,
                encoding="utf-8",
                errors="backslashreplace" if number else "surrogateescape",
                closefd=False,
            ),
        )

    def _put(self) -> None:
        sys.stdin, sys.stdout, sys.stderr = self._streams
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = self._streams  # type: ignore[misc, assignment]

    def restore(self) -> str:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # a task may have replaced it with anything
                stream.flush()
        try:
            for number, copy in enumerate(self._copies):
                os.dup2(copy, number)
        except OSError:
            return "a task has closed descriptors of its worker"
        usable = [_is_open(stream) for stream in self._streams]
        if not all(usable):
            self._streams = [
                stream if usable[number] else self._new(number)
                for number, stream in enumerate(self._streams)
            ]
        self._put()
        return ""


class PrintedOutput:
    """The output of this worker since the end of its previous task.

    Args:
        pipes: the pipes behind the descriptors 1 and 2 of this process.
    """

    def __init__(self, pipes: WorkerPipes) -> None:
        self._readers = [out_of_the_way(each) for each in pipes.readers]
        self._token = out_of_the_way(pipes.token)
        self._poll = select.poll()
        for descriptor in (*self._readers, self._token):
            self._poll.register(descriptor, select.POLLIN)
        self._silent = [(self._token, select.POLLIN)]
        libc: Any = ctypes.CDLL(None)
        self._stdout = ctypes.c_void_p.in_dll(libc, "stdout")
        # Otherwise lines of C libraries would wait until 4096 bytes have come together.
        libc.setvbuf(self._stdout, None, _LINE_BUFFERED, 0)
        self._flush = libc.fflush
        self._flush.argtypes = [ctypes.c_void_p]

    def take(self) -> tuple[dict[str, Any], bytes]:
        """Return what the report of a task's end says of its output.

        These are entries of the header, and bytes after the body: see `worker_reports`. After a
        report of `unread` output, call `wait`.
        """
        self._flush(self._stdout)
        if self._poll.poll(0) == self._silent:
            return {}, b""
        try:
            os.eventfd_read(self._token)
        except OSError:  # the manager reads, or a task has closed it
            return {"unread": True}, b""
        streams = [read_all(reader) for reader in self._readers]
        os.eventfd_write(self._token, 1)
        return {"printed": [len(each) for each in streams]}, b"".join(streams)

    def wait(self) -> None:
        """Wait until the manager has read the rest."""
        token = select.poll()
        token.register(self._token, select.POLLIN)
        token.poll(_TOKEN_TIMEOUT * 1000)


def _is_open(stream: IO[str]) -> bool:
    try:
        return not stream.closed
    except ValueError:  # its buffer is detached
        return False


class _Environment:
    """The environment; changes are recorded when they are made.

    Changes that a module makes while it is imported stay, since it is imported only once. All
    others are undone.
    """

    def __init__(self) -> None:
        self._environ, self._environb = os.environ, os.environb
        self._wanted = dict(os.environb)
        self._written: set[bytes] = set()
        self._putenv, self._unsetenv = os.putenv, os.unsetenv

        def putenv(name: Any, value: Any, /) -> None:
            self._putenv(name, value)
            if name not in _PER_TASK:
                self._note(os.fsencode(name), os.fsencode(value))

        def unsetenv(name: Any, /) -> None:
            self._unsetenv(name)
            if name not in _PER_TASK:
                self._note(os.fsencode(name), None)

        # `os.environ` calls these as globals of `os`.
        os.putenv, os.unsetenv = putenv, unsetenv

    def _note(self, name: bytes, value: bytes | None) -> None:
        if not _is_importing():
            self._written.add(name)
        elif value is None:
            self._wanted.pop(name, None)
        else:
            self._wanted[name] = value

    def restore(self) -> None:
        os.environ, os.environb = self._environ, self._environb
        for name in self._written:
            if name in self._wanted:
                os.environb[name] = self._wanted[name]
            else:
                with suppress(KeyError):  # it may have been set without `os.environ`
                    del os.environb[name]
                self._unsetenv(name)
        self._written.clear()


def _is_importing() -> bool:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False


class _Limits:
    """The limits of `setrlimit`; calls are recorded when they are made."""

    def __init__(self) -> None:
        names = (name for name in dir(resource) if name.startswith("RLIMIT_"))
        numbers = {int(getattr(resource, name)) for name in names}
        self._wanted = {number: resource.getrlimit(number) for number in numbers}
        self._called = False
        self._set = resource.setrlimit
        for name in ("setrlimit", "prlimit"):
            setattr(resource, name, self._noting(getattr(resource, name)))

    def _noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def noting(*arguments: Any) -> Any:
            self._called = True
            return function(*arguments)

        return noting

    def restore(self) -> str:
        if not self._called:
            return ""
        self._called = False
        try:
            for number, wanted in self._wanted.items():
                if resource.getrlimit(number) != wanted:
                    self._set(number, wanted)
        except (OSError, ValueError):
            return "a task has lowered a resource limit that can't be raised again"
        return ""


def _interpreter() -> tuple[Any, Any, int, float, bool]:
    return (
        sys.gettrace(),
        sys.getprofile(),
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        gc.isenabled(),
    )


def _scheduling() -> tuple[int, set[int]]:
    return os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)


def _lowest_free_descriptor() -> int:
    try:
        descriptor = os.dup(1)
    except OSError:  # there is none
        return sys.maxsize
    os.close(descriptor)
    return descriptor
