"""Names of the events in a Flux job's main eventlog, RFC 21."""

from __future__ import annotations

from typing import Final

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
#: The last event.
LAST_EVENT: Final = "clean"
