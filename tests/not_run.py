"""Leaves out tests that can't run on this machine, and reports their number and the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

_LEFT_OUT = pytest.StashKey[Counter[str]]()
_OUTPUT = "tests left out, by reason"


def leave_out(
    config: pytest.Config,
    items: list[pytest.Item],
    why: Callable[[pytest.Item], str | None],
) -> None:
    """Deselect tests that can't run.

    Args:
        config: pytest's configuration.
        items: the collected tests; changed in place.
        why: returns the reason why a test can't run ("tests of X: Y is missing"), or `None`.
    """
    reasons = {id(item): reason for item in items if (reason := why(item))}
    if reasons:
        config.hook.pytest_deselected(items=[item for item in items if id(item) in reasons])
        items[:] = [item for item in items if id(item) not in reasons]
        config.stash.setdefault(_LEFT_OUT, Counter()).update(reasons.values())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the numbers to the main process, if this is a worker of pytest-xdist."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output[_OUTPUT] = dict(session.config.stash.get(_LEFT_OUT, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Receive the numbers of a worker. All workers leave out the same tests, so don't add them."""
    told: dict[str, int] = getattr(node, "workeroutput", {}).get(_OUTPUT, {})
    left_out = node.config.stash.setdefault(_LEFT_OUT, Counter())
    for reason, count in told.items():
        left_out[reason] = count


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Report the tests that were left out."""
    for reason, count in config.stash.get(_LEFT_OUT, Counter()).items():
        terminalreporter.write_line(f"NOT RUN: {count} {reason}", yellow=True)
