"""The result of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from flux_endpoint.errors import FluxEndpointError


class FindingState(StrEnum):
    """The state of the checked thing."""

    OK = "ok"
    #: It works, but not well, or not for long.
    WARNING = "warning"
    FAILED = "failed"
    #: It was not checked: it is not needed here, or something else must be fixed first.
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: the checked thing, as `area.thing`; these names are stable.
        state: its state.
        said: the result, in a few words.
        mend: how to fix it; empty if there is nothing to fix.
        subject: the thing's name, such as an endpoint's, if there are several.
    """

    check: str
    state: FindingState
    said: str
    mend: str = ""
    subject: str | None = None


def ok(check: str, said: str, subject: str | None = None) -> Finding:
    """Return that something is in order."""
    return Finding(check, FindingState.OK, said, subject=subject)


def warning(check: str, said: str, mend: str, subject: str | None = None) -> Finding:
    """Return that something could be better.

    Args:
        check: the checked thing; see `Finding`.
        said: the result.
        mend: how to fix it.
        subject: the thing's name, if there are several.
    """
    return Finding(check, FindingState.WARNING, said, mend, subject)


def failed(check: str, said: str, mend: str, subject: str | None = None) -> Finding:
    """Return that something is wrong.

    Args:
        check: the checked thing; see `Finding`.
        said: the result.
        mend: how to fix it.
        subject: the thing's name, if there are several.
    """
    return Finding(check, FindingState.FAILED, said, mend, subject)


def skipped(check: str, said: str, subject: str | None = None) -> Finding:
    """Return that something was not checked, with nothing to fix about it."""
    return Finding(check, FindingState.SKIPPED, said, subject=subject)


def guarded(
    area: str, look: Callable[[], Iterable[Finding]], subject: str | None = None
) -> Iterator[Finding]:
    """Yield the findings of `look`; if it fails itself, yield that, so that other checks go on."""
    try:
        yield from look()
    except (OSError, FluxEndpointError) as error:
        yield failed(f"{area}.check", str(error), "fix that, and check again", subject)
    except Exception as error:  # noqa: BLE001 - whatever a broken machine makes of it
        yield failed(
            f"{area}.check",
            f"the check itself failed: {type(error).__name__}: {error}",
            "please report this bug of Flux Endpoint",
            subject,
        )
