"""Route to attach to a job at an endpoint: a task without a function follows the job."""

import hashlib
from typing import Annotated
from uuid import uuid4

import sqlalchemy as sa
from fastapi import APIRouter, Path
from pydantic import BeforeValidator, ValidationError

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.jobid import parse_jobid
from flux_endpoint.protocol.rest import AttachAnswer, AttachJob, UuidText
from flux_endpoint.service import submissions, topology
from flux_endpoint.service.context import Service
from flux_endpoint.service.errors import invalid_request
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.routes.endpoints import usable
from flux_endpoint.service.routes.request import IdempotencyKey, RawBody, json_body
from flux_endpoint.service.store import endpoints, tasks
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.ids import ordered_ids
from flux_endpoint.service.store.users import User

router = APIRouter()


def _jobid(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be a job id: a number, or text as Flux prints it")  # noqa: TRY004
    return parse_jobid(value)


class _Attach(AttachJob):
    jobid: Annotated[int, BeforeValidator(_jobid)]


@router.post(
    "/v3/endpoints/{endpoint_id}/attach",
    response_model_exclude_none=True,
    openapi_extra=json_body(AttachJob),
)
def attach(
    endpoint_id: Annotated[UuidText, Path()],
    body: RawBody,
    service: Service,
    caller: Caller,
    idempotency_key: IdempotencyKey = None,
) -> AttachAnswer:
    """Create a task that follows a job; with an idempotency key, only once."""
    try:
        request = _Attach.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error) from error
    submission = tasks.Submission(
        id=ordered_ids(1)[0],
        owner_id=caller.id,
        owner=caller.name,
        endpoint_id=endpoint_id,
        group_id=request.task_group_id or str(uuid4()),
        create_queue=request.create_queue,
        result_serializers=request.result_serializers or None,
        attach_jobid=str(request.jobid),
        idempotency_key=idempotency_key,
        body_hash=hashlib.sha256(b"attach:" + endpoint_id.encode() + body).hexdigest()
        if idempotency_key
        else None,
    )
    with service.database.read() as connection:
        stored = submissions.earlier(connection, submission)
        if stored is None:
            endpoint = _checked_endpoint(connection, endpoint_id, caller)
    if stored is None:
        new = tasks.NewTask(ordered_ids(1)[0], None, "")
        stored = submissions.store(service.database, service.quotas, submission, [new])
        if stored is submission:
            service.changes.tasks_submitted(caller.id, 1)
            service.audit.did(
                "job followed",
                caller.name,
                endpoint_id=endpoint_id,
                task_id=new.id,
                jobid=request.jobid,
            )
            service.publisher.publish(stored, [new], {}, service.settings.publish_timeout)
            return _answer(stored, new.id, endpoint)
    if stored.create_queue:
        group_queue = topology.of_group(stored.group_id)
        service.publisher.declare(group_queue, service.settings.publish_timeout)
    with service.database.read() as connection:
        ((task_id,),) = tasks.task_ids_by_function(connection, stored.id).values()
        known = endpoints.get_endpoint(connection, endpoint_id)
    return _answer(stored, task_id, known)


def _checked_endpoint(connection: sa.Connection, endpoint_id: str, caller: User) -> Endpoint:
    endpoint = usable(connection, endpoint_id, caller)
    if not endpoint.is_own_make:
        why = (
            "it is a multi-user endpoint"
            if endpoint.metadata_of_user_endpoints
            else "only endpoints of Flux Endpoint can"
        )
        raise ServiceError(
            f"endpoint {endpoint_id} can't attach to jobs: {why}",
            http_status=409,
            code="ATTACH_NOT_SUPPORTED",
            field="endpoint_id",
        )
    # If an owner restricts the functions of other users, those can't read the jobs' output either.
    if endpoint.allowed_functions is not None and endpoint.owner_id != caller.id:
        raise ServiceError(
            f"endpoint {endpoint_id} runs allowed functions only, so only its owner may attach "
            "to its jobs",
            http_status=403,
            code="ATTACH_NOT_PERMITTED",
            field="endpoint_id",
        )
    return endpoint


def _answer(submission: tasks.Submission, task_id: str, endpoint: Endpoint | None) -> AttachAnswer:
    return AttachAnswer(
        task_id=task_id,
        task_group_id=submission.group_id,
        endpoint_id=submission.endpoint_id,
        endpoint_status=None if endpoint is None else endpoint.status,
        endpoint_last_seen=None if endpoint is None else endpoint.last_seen,
    )
