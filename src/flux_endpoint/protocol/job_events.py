"""The events in a Flux job's main eventlog, RFC 21."""

from __future__ import annotations

from typing import Any, Final, Protocol

#: In chronological order. A program that adds callbacks in this order gets all events in this
#: order, including those that arrive in the meantime.
IN_ORDER: Final = (
    "submit",
    "depend",
    "urgency",
    "priority",
    "debug",
    "alloc",
    "flux-restart",
    "start",
    "exception",
    "finish",
    "release",
    "free",
    "clean",
)
#: Events that `flux.job.FluxExecutorFuture` accepts callbacks for.
EVENTS: Final = frozenset(IN_ORDER)
#: An event of a task, not of its job: an attempt has failed, and there will be another one.
ATTEMPT_FAILED: Final = "attempt-failed"
#: Name, among the events that an endpoint sends, of output of a running task that somebody follows.
#: It is no event of Flux, and it is not stored. Its context has for "stdout" and "stderr" a part of
#: the stream: the positions of its first byte and after its last one, and its text; "attempt" is
#: the number of the attempt (absent: 1), whose streams begin anew.
OUTPUT_EVENT: Final = "output"
#: The last event.
LAST_EVENT: Final = "clean"


class EventRecord(Protocol):
    """An event: Flux's `EventLogEvent`, or one of the embedded executor."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def timestamp(self) -> float: ...  # noqa: D102
    @property
    def context(self) -> dict[str, Any]: ...  # noqa: D102
