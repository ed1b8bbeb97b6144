"""`flux-endpoint doctor`: what is wrong here, and how to fix it."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import click

from flux_endpoint import logs
from flux_endpoint.cli.checks.broker import check_broker
from flux_endpoint.cli.checks.endpoints import EndpointChecks
from flux_endpoint.cli.checks.finding import Finding, FindingState, guarded
from flux_endpoint.cli.checks.flux import FluxChecks
from flux_endpoint.cli.checks.machine import check_machine
from flux_endpoint.cli.checks.service import ServiceChecks
from flux_endpoint.cli.exits import ExitCode
from flux_endpoint.cli.options import complete_endpoint, json_option, local_name, put_json
from flux_endpoint.cli.table import Tone, color_option, toned
from flux_endpoint.endpoint.directory import EndpointDirectory, all_endpoints
from flux_endpoint.errors import FluxEndpointError

_TITLES = {
    "machine": "This machine",
    "service": "The service",
    "broker": "RabbitMQ",
    "flux": "Flux",
    "endpoint": "Endpoint",
}
_TONES: dict[FindingState, Tone] = {
    FindingState.OK: "good",
    FindingState.WARNING: "active",
    FindingState.FAILED: "bad",
    FindingState.SKIPPED: "quiet",
}
_WIDTH = 100


@click.command()
@click.argument("endpoint", required=False, callback=local_name, shell_complete=complete_endpoint)
@json_option
@color_option
def doctor(*, endpoint: str | None, as_json: bool, color: bool) -> int:
    """Run all checks, and say how to fix what is wrong.

    Checks this machine, the service, RabbitMQ, Flux, and the endpoints of this machine, or only
    ENDPOINT. Changes nothing.
    """
    logs.configure("CRITICAL")  # errors that would be logged are findings, too
    if endpoint is not None:
        EndpointDirectory(endpoint).require()
    counts: Counter[FindingState] = Counter()
    findings: list[Finding] = []
    title = ""
    for finding in find(endpoint):
        counts[finding.state] += 1
        findings.append(finding)
        if as_json:
            continue
        above = _title(finding)
        if above != title:
            click.echo(f"{chr(10) if title else ''}{above}")
            title = above
        click.echo(_shown(finding, color=color), color=color)
    if as_json:
        document = {
            "findings": [asdict(each) for each in findings],
            "counts": {state.value: counts[state] for state in FindingState},
        }
        put_json(document)
    else:
        click.echo(f"\n{_sum(counts)}")
    return ExitCode.FAILED if counts[FindingState.FAILED] else ExitCode.OK


def find(endpoint: str | None) -> Iterator[Finding]:
    """Yield all findings, on all endpoints of this machine or on one."""
    directories = _directories(endpoint)
    yield from guarded("machine", lambda: check_machine(directories))
    service = ServiceChecks()
    yield from guarded("service", service.run)
    yield from guarded("broker", lambda: check_broker(service.api))
    flux = FluxChecks(needed=bool(directories))
    yield from guarded("flux", flux.run)
    for directory in directories:
        checks = EndpointChecks(directory, service.api, flux_reachable=flux.reachable)
        yield from guarded("endpoint", checks.run, directory.name)


def _directories(endpoint: str | None) -> list[EndpointDirectory]:
    if endpoint is not None:
        return [EndpointDirectory(endpoint)]
    try:
        return all_endpoints()
    except (OSError, FluxEndpointError):  # other checks report errors of the state directory
        return []


def _title(finding: Finding) -> str:
    title = _TITLES[finding.check.partition(".")[0]]
    return title if finding.subject is None else f"{title} {finding.subject}"


def _shown(finding: Finding, *, color: bool) -> str:
    mark = toned(f"{finding.state.value:<7}", _TONES[finding.state] if color else None)
    lines = [f"  {mark}  {finding.said}"]
    if finding.mend:
        lines += textwrap.wrap(
            finding.mend,
            _WIDTH,
            initial_indent=" " * 11 + "-> ",
            subsequent_indent=" " * 14,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _sum(counts: Counter[FindingState]) -> str:
    if not counts[FindingState.FAILED] and not counts[FindingState.WARNING]:
        return "Nothing is wrong."
    parts = [
        f"{counts[state]} {what}"
        for state, what in (
            (FindingState.FAILED, "failed"),
            (FindingState.WARNING, "warnings" if counts[FindingState.WARNING] > 1 else "warning"),
        )
        if counts[state]
    ]
    return f"{counts.total()} checks: {', '.join(parts)}."
