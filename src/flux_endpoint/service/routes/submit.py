"""Route to submit tasks: they are checked, then stored in one transaction, then published."""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from fastapi import APIRouter, Path
from fastapi.responses import Response
from pydantic import FailFast, Field, ValidationError

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES
from flux_endpoint.protocol.rest import SubmitAnswer, SubmitBatch, TaskNeeds, UuidText
from flux_endpoint.protocol.run_options import RunOptionsError, check_for_job, parse_run_options
from flux_endpoint.service import buffers, submissions, topology
from flux_endpoint.service.context import Service, ServiceContext
from flux_endpoint.service.disconnects import Watched
from flux_endpoint.service.errors import invalid_field, invalid_request
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.routes.endpoints import usable
from flux_endpoint.service.routes.request import IdempotencyKey, RawBody, json_body
from flux_endpoint.service.store import dependencies, endpoints, functions, tasks
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.ids import ordered_ids
from flux_endpoint.service.store.users import User

router = APIRouter()

#: Maximum number of functions in one request.
MAX_FUNCTIONS = 10_000


class _Batch(SubmitBatch):
    # Ids as the caller has written them, since the answer must use the same strings. Validation
    # stops at the first invalid value: collecting all of them would dominate the cost.
    tasks: dict[str, Annotated[list[str], FailFast()]] = Field(
        min_length=1, max_length=MAX_FUNCTIONS
    )


@dataclass(frozen=True)
class _Payloads:
    """The payloads of one function of a batch."""

    function_id: str
    requested_id: str
    payloads: list[str]
    #: For each payload, what it waits for.
    needs: list[TaskNeeds | None]


@router.post("/v3/endpoints/{endpoint_id}/submit", openapi_extra=json_body(SubmitBatch))
def submit(
    endpoint_id: Annotated[UuidText, Path()],
    body: RawBody,
    service: Service,
    caller: Caller,
    connection: Watched,
    *,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Store the tasks of a batch and publish them; with an idempotency key, only once."""
    act = partial(_submit, endpoint_id, body, service, caller, idempotency_key)
    if idempotency_key is not None:
        return act()
    same = (caller.id, endpoint_id, hashlib.sha256(body).digest())
    return service.repeats.answer(same, connection, act)


def _submit(
    endpoint_id: str,
    body: bytes,
    service: ServiceContext,
    caller: User,
    idempotency_key: str | None,
) -> Response:
    try:
        batch = _Batch.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error) from error
    by_function = _by_function(batch)
    submission = _submission(endpoint_id, batch, body, caller, idempotency_key)
    with service.database.read() as connection:
        stored = submissions.earlier(connection, submission)
        if stored is None:
            endpoint, found = _permitted(connection, endpoint_id, by_function, caller)
    if stored is None:
        code = {function_id: function.code for function_id, function in found.items()}
        used = [each for each, its in found.items() if its.use_is_due(submission.created_at)]
        runs_at = service.official.running_endpoint(
            endpoint, caller, batch.user_endpoint_config, batch.user_runtime
        )
        submission = replace(submission, endpoint_id=runs_at)
        _refuse_options(endpoint, submission.run_options or {})
        new = _new_tasks(by_function)
        needs = _needs_by_task(by_function, new, endpoint)

        def also(connection: sa.Connection) -> None:
            functions.note_use(connection, used, submission.created_at)
            # Tasks for an official endpoint are held, and given to it as it has room.
            service.official.hold(connection, endpoint, runs_at, new, code)
            if needs:
                _store_needs(connection, caller, needs)

        stored = submissions.store(service.database, service.quotas, submission, new, also)
        if stored is submission:
            service.changes.tasks_submitted(caller.id, len(new))
            service.audit.did(
                "tasks submitted",
                caller.name,
                endpoint_id=endpoint_id,
                submission_id=stored.id,
                task_group_id=stored.group_id,
                tasks=len(new),
                functions={each.function_id: len(each.payloads) for each in by_function[:20]},
            )
            ready = [n for n in service.official.publishable(endpoint, new) if n.id not in needs]
            service.publisher.publish(
                stored,
                ready,
                code,
                service.settings.publish_timeout,
                endpoint.takes_together,
            )
            if needs:
                service.dependents.wake()  # what they need may have ended before
            return _answer(stored, endpoint_id, by_function, _ids(new), endpoint)
    return _answer_again(service, stored, endpoint_id, by_function)


def _answer_again(
    service: ServiceContext,
    stored: tasks.Submission,
    endpoint_id: str,
    by_function: list[_Payloads],
) -> Response:
    """Return the answer to a submission that was stored before."""
    if stored.create_queue:
        group_queue = topology.of_group(stored.group_id)
        service.publisher.declare(group_queue, service.settings.publish_timeout)
    with service.database.read() as connection:
        ids = tasks.task_ids_by_function(connection, stored.id)
        known = endpoints.get_endpoint(connection, endpoint_id)
    return _answer(stored, endpoint_id, by_function, ids, known)


def _submission(
    endpoint_id: str, batch: _Batch, body: bytes, caller: User, idempotency_key: str | None
) -> tasks.Submission:
    return tasks.Submission(
        id=ordered_ids(1)[0],
        owner_id=caller.id,
        owner=caller.name,
        endpoint_id=endpoint_id,  # replaced for a multi-user endpoint
        group_id=batch.task_group_id or str(uuid4()),
        create_queue=batch.create_queue,
        resource_specification=batch.resource_specification or None,
        result_serializers=batch.result_serializers or None,
        run_options=_run_options(batch),
        idempotency_key=idempotency_key,
        body_hash=_body_hash(endpoint_id, body) if idempotency_key else None,
    )


def _run_options(batch: SubmitBatch) -> dict[str, Any] | None:
    try:
        options = parse_run_options(batch.run_options or {})
        if batch.resource_specification:
            check_for_job(options, batch.resource_specification)
        return options.as_json() or None
    except RunOptionsError as error:
        raise invalid_field("run_options", str(error)) from error


def _refuse_options(endpoint: Endpoint, options: dict[str, Any]) -> None:
    """Refuse options that the endpoint does not know, and would ignore.

    Raises:
        ServiceError: 422, there is one.
    """
    refused = endpoint.refused_options(options)
    if refused:
        own = endpoint.is_own_make or endpoint.starts_own_user_endpoints
        why = "is of an earlier release" if own else "is not one of Flux Endpoint"
        raise ServiceError(
            f"endpoint {endpoint.public_id} {why}, and does not know {', '.join(refused)}: submit "
            "without, or to another endpoint",
            http_status=422,
            code="RUN_OPTIONS_NOT_SUPPORTED",
            field="run_options",
        )


def _body_hash(endpoint_id: str, body: bytes) -> str:
    hashed = hashlib.sha256(endpoint_id.encode())
    hashed.update(body)
    return hashed.hexdigest()


def _by_function(batch: SubmitBatch) -> list[_Payloads]:
    found: dict[str, _Payloads] = {}
    for requested_id, payloads in batch.tasks.items():
        field = f"tasks.{requested_id}"
        try:
            function_id = str(UUID(requested_id))
        except ValueError:
            raise invalid_field(field, f"{requested_id!r} is not a UUID") from None
        if function_id in found:
            raise invalid_field(field, f"function {function_id} is named twice")
        if not payloads:
            raise invalid_field(field, "has no payload")
        for index, payload in enumerate(payloads):
            _check_payload(f"{field}[{index}]", payload)
        needs = _needs_of(batch, requested_id, len(payloads))
        found[function_id] = _Payloads(function_id, requested_id, payloads, needs)
    for requested_id in batch.needs or ():
        if requested_id not in batch.tasks:
            raise invalid_field(f"needs.{requested_id}", "has no payloads in 'tasks'")
    return list(found.values())


def _needs_of(batch: SubmitBatch, requested_id: str, count: int) -> list[TaskNeeds | None]:
    needs = (batch.needs or {}).get(requested_id)
    if needs is None:
        return [None] * count
    if len(needs) != count:
        raise invalid_field(
            f"needs.{requested_id}", f"has {len(needs)} entries for {count} payloads"
        )
    return [each if each is not None and (each.values or each.after) else None for each in needs]


def _needs_by_task(
    by_function: list[_Payloads], new: list[tasks.NewTask], endpoint: Endpoint
) -> dict[str, tuple[str, TaskNeeds]]:
    """Return by task id what tasks wait for, each with its field in the request.

    Raises:
        ServiceError: 422, their endpoint is a multi-user endpoint, whose tasks take another way, or
            not one of Flux Endpoint, which could not use the results.
    """
    listed = [
        (f"needs.{each.requested_id}[{index}]", needs)
        for each in by_function
        for index, needs in enumerate(each.needs)
    ]
    found = {
        task.id: (field, needs)
        for task, (field, needs) in zip(new, listed, strict=True)
        if needs is not None
    }
    if found and not endpoint.is_own_make:
        what = "a multi-user endpoint" if endpoint.multi_user else "not one of Flux Endpoint"
        raise ServiceError(
            f"endpoint {endpoint.public_id} is {what}: its tasks can't wait for other tasks. Wait "
            "for their results, and submit the task then",
            http_status=422,
            code="DEPENDENCIES_NOT_SUPPORTED",
            field=next(iter(found.values()))[0],
        )
    return found


def _store_needs(
    connection: sa.Connection, caller: User, needs: dict[str, tuple[str, TaskNeeds]]
) -> None:
    missing = dependencies.add(
        connection, caller.id, {each: its for each, (_, its) in needs.items()}
    )
    if missing is not None:
        task_id, needed = missing
        raise ServiceError(
            f"task {needed}, which a task waits for, is unknown, or was removed",
            http_status=404,
            code="TASK_NOT_FOUND",
            field=needs[task_id][0],
        )


def _check_payload(field: str, payload: str) -> None:
    parts = buffers.split(payload)
    if len(payload) > MAX_PAYLOAD_BYTES:
        size = buffers.payload_bytes(parts, payload)
        if size > MAX_PAYLOAD_BYTES:
            raise ServiceError(
                f"field '{field}': the arguments are {size} bytes, the limit is "
                f"{MAX_PAYLOAD_BYTES}: pass large data through files",
                http_status=413,
                code="TASK_PAYLOAD_TOO_LARGE",
                field=field,
            )
    if parts is None or len(parts) != 2:
        raise invalid_field(field, "is not a packed buffer of two parts, arguments and keywords")


def _permitted(
    connection: sa.Connection, endpoint_id: str, by_function: list[_Payloads], caller: User
) -> tuple[Endpoint, dict[str, functions.Function]]:
    """Return the endpoint and all functions, if the caller may run them there.

    Raises:
        ServiceError: 403 or 404, the caller must not use the endpoint or a function.
    """
    endpoint = usable(connection, endpoint_id, caller)
    found = functions.find_functions(connection, [each.function_id for each in by_function])
    for each in by_function:
        field = f"tasks.{each.requested_id}"
        known = found.get(each.function_id)
        # A private function of another user is reported like one that doesn't exist.
        if known is None or not (known.public or known.owner_id == caller.id):
            raise ServiceError(
                f"function {each.function_id} is unknown",
                http_status=404,
                code="FUNCTION_NOT_FOUND",
                field=field,
            )
        allowed = endpoint.allowed_functions
        if allowed is not None and each.function_id not in allowed:
            raise ServiceError(
                f"function {each.function_id} is not among those that endpoint {endpoint_id} "
                "allows",
                http_status=403,
                code="FUNCTION_NOT_PERMITTED",
                field=field,
            )
    return endpoint, found


def _new_tasks(by_function: list[_Payloads]) -> list[tasks.NewTask]:
    payloads = [(each.function_id, payload) for each in by_function for payload in each.payloads]
    ids = ordered_ids(len(payloads))
    return [
        tasks.NewTask(task_id, function_id, payload)
        for task_id, (function_id, payload) in zip(ids, payloads, strict=True)
    ]


def _ids(new: list[tasks.NewTask]) -> dict[str | None, list[str]]:
    ids: dict[str | None, list[str]] = {}
    for task in new:
        ids.setdefault(task.function_id, []).append(task.id)
    return ids


def _answer(
    submission: tasks.Submission,
    endpoint_id: str,
    by_function: list[_Payloads],
    ids: dict[str | None, list[str]],
    endpoint: Endpoint | None,
) -> Response:
    answer = SubmitAnswer(
        request_id=submission.id,
        task_group_id=submission.group_id,
        endpoint_id=endpoint_id,  # as the caller knows it
        tasks={each.requested_id: ids[each.function_id] for each in by_function},
        endpoint_status=None if endpoint is None else endpoint.status,
        endpoint_last_seen=None if endpoint is None else endpoint.last_seen,
    )
    text = answer.model_dump_json(exclude_none=True)
    return Response(text, media_type="application/json")
