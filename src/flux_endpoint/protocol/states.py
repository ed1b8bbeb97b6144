"""Task states, and the parts of the system that report them (official names and values)."""

from __future__ import annotations

from enum import StrEnum


class TaskState(StrEnum):
    """States of a task, in the order that a successful task passes."""

    RECEIVED = "received"
    WAITING_FOR_EP = "waiting-for-ep"
    WAITING_FOR_NODES = "waiting-for-nodes"
    WAITING_FOR_LAUNCH = "waiting-for-launch"
    EXEC_START = "execution-start"
    EXEC_END = "execution-end"
    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"
    RESULT_RECEIVED = "result-received"
    RESULT_ENQUEUED = "result-enqueued"
    AP_RECEIVED = "action-provider-received"
    AP_TASK_SUBMITTED = "action-provider-task-submitted"
    AP_TASKGROUP_RUNNING = "action-provider-task-group-in-progress"
    AP_TASKGROUP_COMPLETED = "action-provider-task-group-completed"
    AP_TASKGROUP_ERROR = "action-provider-task-group-error"


#: Final states.
FINAL_STATES = frozenset({TaskState.SUCCESS, TaskState.FAILED})


class ActorName(StrEnum):
    """The part of the system that reports a transition."""

    WORKER = "worker"
    MANAGER = "manager"
    INTERCHANGE = "interchange"
    ENDPOINT = "endpoint"
    RESULT_PROCESSOR = "result-processor"
    WEB_SERVICE = "web-service"
    ACTION_PROVIDER = "action-provider"


class ErrorCode(StrEnum):
    """`error_details.code` of a failed result (official values, then this project's)."""

    REMOTE_EXECUTION = "RemoteExecutionError"
    MAX_RESULT_SIZE = "MaxResultSizeExceeded"
    COULD_NOT_EXECUTE = "CouldNotExecuteUserTaskError"
    FUNCTION_NOT_ALLOWED = "FUNCTION_NOT_ALLOWED"
    TASK_NOT_ALLOWED = "TASK_NOT_ALLOWED"
    UNKNOWN = "UNKNOWN_TASK_FAILURE"
    CANCELLED = "TaskCancelled"
    WORKER_LOST = "WorkerLost"
    ENGINE_REFUSED = "EngineRefusedTask"
    JOURNAL_LOST = "JournalLost"
    ENDPOINT_LOST = "EndpointLost"
    ENDPOINT_NOT_STARTED = "EndpointNotStarted"
    ENDPOINT_DELETED = "EndpointDeleted"
    DEPENDENCY_FAILED = "DependencyFailed"
