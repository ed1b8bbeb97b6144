"""CPU time and peak memory of tasks and of their processes."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: Resets the peak of this process's memory to its present memory (proc(5), Linux 4.0).
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = b"5"
#: Bytes in the unit of `ru_maxrss`, and units by which a peak may be too high: a reset takes time.
_UNIT = 1024
_TOLERANCE = 512

_usage = resource.getrusage
_SELF, _CHILDREN = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN


@dataclass(frozen=True, slots=True)
class Usage:
    """Resources that a task has used.

    Attributes:
        cpu_time: seconds of CPU time, of user and system, of all its processes that have ended.
        max_rss: peak resident memory of its largest process, in bytes; `None`: unknown.
    """

    cpu_time: float
    max_rss: int | None = None

    @classmethod
    def of(cls, used: resource.struct_rusage) -> Self:
        """Return the usage of a process that was waited for."""
        return cls(used.ru_utime + used.ru_stime, used.ru_maxrss * _UNIT)

    @classmethod
    def total(cls, parts: Iterable[Usage]) -> Self | None:
        """Return the sum of the CPU times and the largest peak; `None` if there are no parts."""
        found = list(parts)
        if not found:
            return None
        peaks = [part.max_rss for part in found if part.max_rss is not None]
        return cls(sum(part.cpu_time for part in found), max(peaks, default=None))


class Meter:
    """Measures what this process and those that it waits for use between `begin` and `end`.

    The kernel counts over the life of a process. So the peak of its own memory is reset before a
    task if an earlier one has raised it. That of its children can't be reset: it is known if this
    task has raised it, or if `note_command` was called.
    """

    def __init__(self) -> None:
        #: The peak after the last reset.
        self._floor = 0
        self._can_reset = True
        self._own = self._below = _usage(_SELF)

    def begin(self) -> None:
        """Begin to measure."""
        own = _usage(_SELF)
        if self._can_reset and own.ru_maxrss > self._floor + _TOLERANCE:
            own = self._reset()
        self._own, self._below = own, _usage(_CHILDREN)
        _commands.clear()

    def end(self) -> Usage:
        """Return what was used since `begin`."""
        own, below = _usage(_SELF), _usage(_CHILDREN)
        peaks = (self._peak(own), self._peak_below(below))
        largest = None if None in peaks else max(peak for peak in peaks if peak is not None)
        return Usage(
            _seconds(own) - _seconds(self._own) + _seconds(below) - _seconds(self._below),
            None if largest is None else largest * _UNIT,
        )

    def _reset(self) -> resource.struct_rusage:
        try:
            _CLEAR_REFS.write_bytes(_RESET_PEAK)
        except OSError:  # this kernel can't
            self._can_reset = False
        own = _usage(_SELF)
        self._floor = own.ru_maxrss
        return own

    def _peak(self, own: resource.struct_rusage) -> int | None:
        is_known = self._can_reset or own.ru_maxrss > self._own.ru_maxrss
        return own.ru_maxrss if is_known else None

    def _peak_below(self, below: resource.struct_rusage) -> int | None:
        if below.ru_minflt == self._below.ru_minflt:
            return 0  # no process has ended: each has page faults
        if below.ru_maxrss > self._below.ru_maxrss:
            return below.ru_maxrss
        return max(_commands, default=None)


#: Peaks of the commands that this process has waited for since `Meter.begin`.
_commands: list[int] = []
#: The most of them: where nobody measures, nobody clears them.
_MAX_COMMANDS = 64


def note_command(used: resource.struct_rusage) -> None:
    """Note the usage of a command that this process has waited for."""
    if len(_commands) >= _MAX_COMMANDS:
        _commands[:] = [max(_commands)]
    _commands.append(used.ru_maxrss)


def _seconds(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime
