"""Names of the events in a Flux job's main eventlog, RFC 21."""

from __future__ import annotations

from typing import Final

#: In the order in which they come. Whoever adds a callback for each of them in this order is told
#: of them in it, those included that came while he did so.
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
#: Those that `flux.job.FluxExecutorFuture` takes callbacks for.
EVENTS: Final = frozenset(IN_ORDER)
#: Comes after all others.
LAST_EVENT: Final = "clean"
