"""Route to follow the output of a task while it runs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from flux_endpoint.protocol.operations import FollowOutput, OutputAnswer
from flux_endpoint.service.context import Service
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.live_output import LiveOutput
from flux_endpoint.service.output_follower import OutputFollower
from flux_endpoint.service.routes.tasks import TaskId

router = APIRouter()


async def _live(request: Request) -> LiveOutput:
    live = request.app.state.live_output
    assert isinstance(live, LiveOutput)
    return live


Live = Annotated[LiveOutput, Depends(_live)]


@router.get("/v3/tasks/{task_id}/output")
async def follow(
    task_id: TaskId,
    query: Annotated[FollowOutput, Query()],
    service: Service,
    caller: Caller,
    live: Live,
) -> OutputAnswer:
    """Return what a task has printed after the given positions, as soon as there is something.

    The answer is empty if nothing comes for a while. Once the task has ended, it has the rest.
    """
    positions = (query.stdout, query.stderr)
    return await OutputFollower(service, live, caller, task_id, positions).next(query.wait)
