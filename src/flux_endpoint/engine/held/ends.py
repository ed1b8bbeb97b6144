"""Files by which a task in a held allocation is accounted for, whoever is killed.

The host writes `begun` into the directory of the task's job before it starts the task, and
`end.json` at its end, before it reports the end. So when its job is gone, a task without `begun`
never started, and one without `end.json` is lost.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_endpoint.engine.local.event_log import EventLogEvent
from flux_endpoint.paths import write_private

_BEGUN, _END = "begun", "end.json"
#: Largest file of an end that is read, in bytes: events of each rank.
_LARGEST = 1 << 22


@dataclass(frozen=True)
class HeldEnd:
    """How a task ended on its host.

    Attributes:
        events: its main eventlog (RFC 21).
        exec_events: its `guest.exec.eventlog`.
        is_ordered: whether its host had been told by a signal to end: then Flux says why.
    """

    events: list[EventLogEvent]
    exec_events: list[EventLogEvent]
    is_ordered: bool = False

    def dump(self) -> str:
        """Return it as JSON."""
        values = {"events": self.events, "exec_events": self.exec_events}
        return json.dumps({**values, "is_ordered": self.is_ordered})

    @classmethod
    def load(cls, text: str | bytes) -> HeldEnd:
        """Return the end that `dump` wrote.

        Raises:
            ValueError, LookupError, TypeError: the text is something else.
        """
        values: dict[str, Any] = json.loads(text)
        events, exec_events = (
            [EventLogEvent(**event) for event in values[key]] for key in ("events", "exec_events")
        )
        return cls(events, exec_events, bool(values["is_ordered"]))


def clear(directory: Path) -> None:
    """Remove the files of an earlier attempt."""
    for name in (_BEGUN, _END):
        with suppress(OSError):
            (directory / name).unlink(missing_ok=True)


def begin(directory: Path) -> None:
    """Record that a task is about to start. Raises OSError if that is not possible."""
    (directory / _BEGUN).touch(mode=0o600)


def has_begun(directory: Path) -> bool:
    """Return whether a task may have started."""
    return (directory / _BEGUN).exists()


def write(directory: Path, end: HeldEnd) -> None:
    """Record the end of a task. Raises OSError if that is not possible."""
    write_private(directory / _END, end.dump(), durable=False)


def read(directory: Path) -> HeldEnd | None:
    """Return the recorded end of a task; `None` if there is none."""
    try:
        path = directory / _END
        if path.stat().st_size > _LARGEST:
            return None
        return HeldEnd.load(path.read_bytes())
    except (OSError, ValueError, LookupError, TypeError):
        return None
