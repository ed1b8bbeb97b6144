"""What `flux-endpoint status` makes of a report, without a service."""

from __future__ import annotations

import pytest

from flux_endpoint.cli.overview import EndpointView, Overview, ServiceView
from flux_endpoint.cli.status import screen
from flux_endpoint.cli.targets import EndpointTarget
from flux_endpoint.protocol.jobid import parse_jobid
from flux_endpoint.protocol.operations import EndpointStateAnswer


def line(title, report):
    state = EndpointStateAnswer(
        endpoint_id="1",
        name="lab",
        display_name=None,
        owner="ada",
        status="online",
        report=report,
    )
    overview = Overview(ServiceView(None), [EndpointView(EndpointTarget("lab", "1"), state)])
    (found,) = [each for each in screen(overview, color=False) if each.startswith(f"{title} ")]
    return found.removeprefix(title).strip()


def line_of_flux(usage):
    report = {"executor": "flux", "executor_description": "an instance", "usage": usage}
    return line("Flux", report)


@pytest.mark.parametrize(
    ("usage", "shown"),
    [
        ({}, ""),
        ({"cores_allocated": 3, "cores_free": 5}, ", 3 of 8 cores allocated"),
        (
            {"cores_allocated": 0, "cores_free": 8, "gpus_allocated": 0, "gpus_free": 4},
            ", 0 of 8 cores allocated, 0 of 4 gpus allocated",
        ),
        (
            {"cores_allocated": 1, "cores_free": 7, "gpus_allocated": 0, "gpus_free": 0},
            ", 1 of 8 cores allocated",
        ),
    ],
)
def test_the_flux_line_shows_allocated_and_total_resources(usage, shown):
    assert line_of_flux(usage) == "an instance" + shown


def test_the_screen_lists_the_blocks_of_an_endpoint():
    jobid = parse_jobid("ƒDKTctoJ")
    ready = {"jobid": jobid, "state": "ready", "nodes": 2, "expires": 1.0, "tasks": 3}
    asked = {"jobid": None, "state": "pending", "nodes": 0, "expires": None, "tasks": 0}
    shown = line("Blocks", {"executor": "flux", "blocks": [ready, asked]})
    assert shown == "ƒDKTctoJ ready on 2 nodes, ends in 0s, 3 tasks; - pending"
    assert line("Blocks", {"executor": "flux", "blocks": []}) == "none now"


def test_workers_that_cannot_start_are_shown_with_the_reason():
    report = {"total_workers": 0, "idle_workers": 0, "starting_workers": 0}

    assert line("Workers", {**report, "workers_error": "its job ended with status 1"}) == (
        "none can be started: its job ended with status 1"
    )
    assert line("Workers", {**report, "workers_error": ""}).startswith("none ready")
