"""Route to follow the output of a task while it runs."""

from typing import Annotated
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request

from flux_endpoint.protocol.envelope import ATTEMPTS, RETURNCODE
from flux_endpoint.protocol.messages import OutputWanted, pack
from flux_endpoint.protocol.operations import BEYOND, FollowOutput, OutputAnswer, StreamPart
from flux_endpoint.service.commands import command_endpoint
from flux_endpoint.service.context import Service, ServiceContext
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.live_output import AGAIN, STREAMS, WANTED, LiveOutput, OutputPart
from flux_endpoint.service.page.output import shown_output
from flux_endpoint.service.routes.tasks import TaskId, owned
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.output import TaskOutput, output_of
from flux_endpoint.service.store.users import User

router = APIRouter()


async def _live(request: Request) -> LiveOutput:
    live = request.app.state.live_output
    assert isinstance(live, LiveOutput)
    return live


@router.get("/v3/tasks/{task_id}/output")
async def follow(
    task_id: TaskId,
    query: Annotated[FollowOutput, Query()],
    service: Service,
    caller: Caller,
    live: Annotated[LiveOutput, Depends(_live)],
) -> OutputAnswer:
    """Return what a task has printed after the given positions, as soon as there is something.

    The answer is empty if nothing comes for a while. Once the task has ended, it has the rest.
    """
    positions = (query.stdout, query.stderr)
    answer = await to_thread.run_sync(_ended, service, caller, task_id, positions)
    if answer is None:
        is_due, known = live.follow(task_id, caller.id)
        if is_due:
            await to_thread.run_sync(_ask, service, caller, task_id, known)
        # It may have ended before it was followed.
        answer = await to_thread.run_sync(_ended, service, caller, task_id, positions)
    if answer is not None:
        return answer
    found = await live.news(task_id, positions, query.wait)
    if found:
        return _answer(found, ended=False)
    answer = await to_thread.run_sync(_ended, service, caller, task_id, positions)
    return answer or OutputAnswer(ended=False)


def _ended(
    service: ServiceContext, caller: User, task_id: str, positions: tuple[int, int]
) -> OutputAnswer | None:
    """Return the rest of a task's output if it has ended."""
    with service.database.read() as connection:
        task = owned(connection, task_id, caller, service.settings.keep_tasks)
        if task.completed_at is None:
            return None
        output = output_of(connection, [task_id]).get(task_id)
    if output is None:  # a command has it in its result
        is_command = RETURNCODE in (task.details or {})
        shown = shown_output(task.result if is_command else None, failed=bool(task.failed))
        output = TaskOutput(shown.stdout or "", shown.stderr or "")
    attempts = (task.details or {}).get(ATTEMPTS)
    several = isinstance(attempts, int) and attempts > 1
    return _answer(rest_of(output, positions, several_attempts=several), ended=True)


def rest_of(
    output: TaskOutput, positions: tuple[int, int], *, several_attempts: bool
) -> dict[str, OutputPart]:
    """Return what a caller does not have yet of the output of a task that has ended.

    Args:
        output: the output.
        positions: bytes of each stream that the caller has.
        several_attempts: the output is the last attempt's; what the caller has may be an earlier
            one's, so that all is returned, but not of a stream in which it takes no interest.
    """
    kept = (output.stdout, output.stdout_dropped), (output.stderr, output.stderr_dropped)
    parts = {}
    for name, (text, dropped), position in zip(STREAMS, kept, positions, strict=True):
        begin = 0 if several_attempts and position < BEYOND else position
        part = OutputPart(dropped, dropped + len(text.encode(errors="replace")), text)
        if part.end > begin:
            parts[name] = part.after(begin)
    return parts


def _answer(parts: dict[str, OutputPart], *, ended: bool) -> OutputAnswer:
    return OutputAnswer(
        ended=ended, **{name: StreamPart(**vars(part)) for name, part in parts.items()}
    )


def _ask(service: ServiceContext, caller: User, task_id: str, known: list[int]) -> None:
    """Ask a task's endpoint for its output, if that is one that can send it."""
    with service.database.read() as connection:
        task = owned(connection, task_id, caller, service.settings.keep_tasks)
        endpoint = endpoints.get_endpoint(connection, task.endpoint_id)
    if endpoint is None or not endpoint.sends_output:
        return
    stdout, stderr = known
    message = OutputWanted(task_id=UUID(task_id), seconds=WANTED, stdout=stdout, stderr=stderr)
    command_endpoint(service, endpoint.id, pack(message), expiration=AGAIN)
