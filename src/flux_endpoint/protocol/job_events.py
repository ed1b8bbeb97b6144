"""Names of the events in a Flux job's main eventlog, RFC 21."""

from __future__ import annotations

from typing import Final

#: Those that `flux.job.FluxExecutorFuture` takes callbacks for.
EVENTS: Final = frozenset(
    {
        "alloc",
        "clean",
        "debug",
        "depend",
        "exception",
        "finish",
        "flux-restart",
        "free",
        "priority",
        "release",
        "start",
        "submit",
        "urgency",
    }
)
#: Comes after all others.
LAST_EVENT: Final = "clean"
