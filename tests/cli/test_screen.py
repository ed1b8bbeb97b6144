"""What `flux-endpoint status` makes of a report, without a service."""

from __future__ import annotations

import pytest

from flux_endpoint.cli.overview import EndpointView, Overview, ServiceView
from flux_endpoint.cli.status import screen
from flux_endpoint.cli.targets import Target
from flux_endpoint.protocol.operations import EndpointStateAnswer


def line_of_flux(usage):
    state = EndpointStateAnswer(
        endpoint_id="1",
        name="lab",
        display_name=None,
        owner="ada",
        status="online",
        report={"executor": "flux", "executor_description": "an instance", "usage": usage},
    )
    overview = Overview(ServiceView(None), [EndpointView(Target("lab", "1"), state)])
    (line,) = [line for line in screen(overview, color=False) if line.startswith("Flux ")]
    return line.removeprefix("Flux").strip()


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
def test_it_tells_what_is_allocated_of_what_there_is(usage, shown):
    assert line_of_flux(usage) == "an instance" + shown
