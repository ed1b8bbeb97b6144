"""Route to follow the output of a task while it runs."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from flux_endpoint.protocol.operations import FollowOutput, OutputAnswer
from flux_endpoint.service.context import Service
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.live_output import Known, LiveOutput
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
    known = Known(query.attempt or 1, (query.stdout, query.stderr))
    follower = OutputFollower(
        service, live, caller, task_id, known, knows_attempts=query.attempt is not None
    )
    return await follower.next(query.wait)
