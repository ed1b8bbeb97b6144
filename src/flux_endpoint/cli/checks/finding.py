"""What a check found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from flux_endpoint.errors import FluxEndpointError


class FindingState(StrEnum):
    """How something is."""

    OK = "ok"
    #: It works, but not as well as it might, or not for long.
    WARNING = "warning"
    FAILED = "failed"
    #: It was not looked at, since it is not needed here or something else must be mended first.
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """How one thing is.

    Attributes:
        check: what was looked at, `area.thing`; these names stay.
        state: how it is.
        said: what was found, in a few words.
        mend: what to do about it; empty if there is nothing to do.
        subject: of which thing, e.g. an endpoint's name, where there are several.
    """

    check: str
    state: FindingState
    said: str
    mend: str = ""
    subject: str | None = None


def ok(check: str, said: str, subject: str | None = None) -> Finding:
    """Return that something is well."""
    return Finding(check, FindingState.OK, said, subject=subject)


def warning(check: str, said: str, mend: str, subject: str | None = None) -> Finding:
    """Return that something could be better."""
    return Finding(check, FindingState.WARNING, said, mend, subject)


def failed(check: str, said: str, mend: str, subject: str | None = None) -> Finding:
    """Return that something is wrong."""
    return Finding(check, FindingState.FAILED, said, mend, subject)


def skipped(check: str, said: str, subject: str | None = None) -> Finding:
    """Return that something was not looked at: there is nothing to mend about it."""
    return Finding(check, FindingState.SKIPPED, said, subject=subject)


def guarded(
    area: str, look: Callable[[], Iterable[Finding]], subject: str | None = None
) -> Iterator[Finding]:
    """Yield what `look` finds; that it fails itself is a finding, and keeps no other from it."""
    try:
        yield from look()
    except (OSError, FluxEndpointError) as error:
        yield failed(f"{area}.check", str(error), "mend that, and look again", subject)
    except Exception as error:  # noqa: BLE001 - whatever a broken machine makes of it
        yield failed(
            f"{area}.check",
            f"the check itself failed: {type(error).__name__}: {error}",
            "please report this: it is a bug of Flux Endpoint",
            subject,
        )
