"""The database schema. The migrations in `service/migrations` create it.

Times are in seconds since the epoch. Text of functions, arguments and results is stored as bytes,
since it may contain characters that a text column refuses (NUL).
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    true,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

users = Table(
    "users",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(256), nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    # Number of open tasks, and bytes of their arguments.
    Column("open_tasks", BigInteger, nullable=False, server_default="0"),
    Column("open_bytes", BigInteger, nullable=False, server_default="0"),
    Column("disabled_at", Double),  # its tokens are not valid since then; NULL: they are
    # Limits that are set for this user, by the names of `settings.UserLimits`; NULL: none.
    Column("limits", JSON(none_as_null=True)),
    # Tasks that the user may still submit at once, and when that was counted (see `quotas`).
    Column("rate_left", Double),
    Column("rate_counted_at", Double),
)

tokens = Table(
    "tokens",
    metadata,
    Column("hash", String(64), primary_key=True),  # SHA-256 of the token, hexadecimal
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),  # NULL: never
    Column("endpoint_id", String(36), index=True),  # the only endpoint that it may act as
    Column("scopes", JSON(none_as_null=True)),  # what it permits (see `scope`); NULL: the default
    Column("label", String(256)),
    Column("last_used_at", Double),  # to ten minutes; NULL: never, or before it was recorded
)

#: The members of groups. A group without members does not exist.
group_members = Table(
    "group_members",
    metadata,
    Column("name", String(256), primary_key=True),
    Column("user_id", ForeignKey("users.id"), primary_key=True, index=True),
)

#: Secrets of the service, by name.
secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String(128), nullable=False),  # hexadecimal
)

functions = Table(
    "functions",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("name", String(256), nullable=False),
    Column("code", LargeBinary, nullable=False),  # a packed buffer
    Column("public", Boolean, nullable=False),
    Column("description", LargeBinary),
    Column("meta", JSON(none_as_null=True)),
    Column("created_at", Double, nullable=False),
    Column("deleted_at", Double),
    Column("used_at", Double),  # to the day; NULL: never
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("name", String(256), nullable=False),
    Column("display_name", Text),
    Column("public", Boolean, nullable=False),
    Column("multi_user", Boolean, nullable=False),
    Column("allowed_functions", JSON(none_as_null=True)),  # NULL: all
    # Users ("*": all) and groups that may run tasks there besides the owner, by name.
    Column("users", JSON(none_as_null=True)),
    Column("groups", JSON(none_as_null=True)),
    Column("metadata", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("locked_until", Double),
    Column("deleted_at", Double),
    Column("last_seen", Double),
    Column("last_report", JSON(none_as_null=True)),
    # Of a user endpoint, which belongs to the user who submits: its multi-user endpoint, and its
    # start parameters.
    Column("parent_id", String(36)),
    Column("config_hash", String(64)),
    Column("user_config", JSON(none_as_null=True)),
    Column("user_runtime", JSON(none_as_null=True)),
    # Id of the token with which it was last registered; its account at the broker needs that token.
    Column("token_id", String(12)),
    # Of an official endpoint: the run that may have tasks.
    Column("run", Double),  # when it started; NULL: there is no run
    Column("run_seen", Double),  # when its last report arrived
    Column("run_ends", Double),  # when it counts as lost, unless it reports again
    Column("run_left", Double),  # when its queue, without a consumer, was inspected
    # Time of the deletion: older tasks must fail, then the queues are deleted. NULL: done.
    Column("empty_before", Double),
)
Index(
    "uq_endpoints_parent_id_owner_id_config_hash",
    endpoints.c.parent_id,
    endpoints.c.owner_id,
    endpoints.c.config_hash,
    unique=True,  # NULL parents never collide
)

task_groups = Table(
    "task_groups",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("created_at", Double, nullable=False),
    # Whether clients requested queues with one result per message, and with several.
    Column("plain", Boolean, nullable=False, server_default=true()),
    Column("bundles", Boolean, nullable=False, server_default=false()),
)

#: One row per submission: the common values of its tasks, and whether the broker has them.
submissions = Table(
    "submissions",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner_id", ForeignKey("users.id"), nullable=False),
    Column("endpoint_id", ForeignKey("endpoints.id"), nullable=False, index=True),
    Column("group_id", ForeignKey("task_groups.id"), nullable=False, index=True),
    Column("idempotency_key", String(256)),
    Column("body_hash", String(64)),
    Column("create_queue", Boolean, nullable=False),
    Column("resource_specification", JSON(none_as_null=True)),
    Column("result_serializers", JSON(none_as_null=True)),
    Column("attach_jobid", String(20)),  # decimal, since it is an unsigned 64-bit number
    Column("run_options", JSON(none_as_null=True)),
    Column("created_at", Double, nullable=False),
    Column("published_at", Double),
)
Index(
    "uq_submissions_owner_id_idempotency_key",
    submissions.c.owner_id,
    submissions.c.idempotency_key,
    unique=True,  # NULL keys never collide
)
Index(
    "ix_submissions_unpublished",
    submissions.c.created_at,
    sqlite_where=submissions.c.published_at.is_(None),
    postgresql_where=submissions.c.published_at.is_(None),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("submission_id", ForeignKey("submissions.id"), nullable=False),
    Column("position", Integer, nullable=False),  # within the submission
    Column("function_id", ForeignKey("functions.id")),  # NULL: the task follows a job
    Column("payload", LargeBinary),  # packed arguments; NULL once the task has ended
    Column("completed_at", Double),  # NULL: not ended
    Column("failed", Boolean),
    Column("presumed", Boolean),  # the service has failed it; a real result replaces that
    Column("result", LargeBinary),  # serialized value, or the error text if failed
    Column("details", JSON(none_as_null=True)),
)
Index("ix_tasks_submission_id_position", tasks.c.submission_id, tasks.c.position)
Index("ix_tasks_function_id", tasks.c.function_id)

#: What ended tasks have printed, if they have: the end of each stream, and how much precedes that.
task_output = Table(
    "task_output",
    metadata,
    Column("task_id", ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("stdout", LargeBinary, nullable=False),  # UTF-8
    Column("stderr", LargeBinary, nullable=False),
    Column("stdout_dropped", BigInteger, nullable=False),  # bytes
    Column("stderr_dropped", BigInteger, nullable=False),
)

#: Open tasks of official endpoints: how far each has been delivered (see `official.store`).
deliveries = Table(
    "deliveries",
    metadata,
    Column("task_id", ForeignKey("tasks.id"), primary_key=True),
    Column("endpoint_id", ForeignKey("endpoints.id"), nullable=False),
    Column("size", Integer, nullable=False),  # characters of function and arguments
    Column("claimed_at", Double),  # when a service began to publish it
    Column("released_at", Double),  # when the endpoint's queue had it
    Column("taken_at", Double),  # when it was found missing from the queue
    Column("lost_at", Double),  # set when another run has started: when it counts as lost
)
Index(
    "ix_deliveries_endpoint_id_claimed_at_task_id",
    deliveries.c.endpoint_id,
    deliveries.c.claimed_at,
    deliveries.c.task_id,
)

#: Tasks that wait, or waited, for other tasks (see `store.dependencies`).
dependents = Table(
    "dependents",
    metadata,
    Column("task_id", ForeignKey("tasks.id"), primary_key=True),
    # Number of tasks that it still waits for; 0: it is ready; -1: the broker has it.
    Column("unmet", Integer, nullable=False),
    Column("failed_need", String(36)),  # the first needed task that failed
)
Index("ix_dependents_unmet_task_id", dependents.c.unmet, dependents.c.task_id)

#: What each dependent needs, until it is published or has ended.
dependencies = Table(
    "dependencies",
    metadata,
    Column("task_id", ForeignKey("tasks.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("needs_id", ForeignKey("tasks.id"), nullable=False, index=True),
    Column("is_value", Boolean, nullable=False),  # whether its result is sent along
)

#: Calls of users' tasks whose results may be used again (see `store.cache`).
cached_calls = Table(
    "cached_calls",
    metadata,
    Column("owner_id", ForeignKey("users.id"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("task_id", ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False, index=True),
)
Index("ix_cached_calls_owner_id_task_id", cached_calls.c.owner_id, cached_calls.c.task_id)

#: Job events of tasks, in order of arrival.
task_events = Table(
    "task_events",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("task_id", ForeignKey("tasks.id"), nullable=False),
    Column("jobid", String(20)),
    Column("name", String(256), nullable=False),
    Column("timestamp", Double, nullable=False),
    Column("context", JSON, nullable=False),
    UniqueConstraint("task_id", "name", "timestamp"),
)
Index(
    "ix_task_events_jobid",
    task_events.c.jobid,
    sqlite_where=task_events.c.name == "submit",
    postgresql_where=task_events.c.name == "submit",
)
