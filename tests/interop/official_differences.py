"""Where ours differs from the official package on purpose: its unit tests that fail here, and why.

Not listed is what holds. A key is a test of the official SDK's `tests/unit`, with or without the
case in brackets; without, it means every case.
"""

from __future__ import annotations

from typing import Final

_SUBMITTER = (
    "drives the official Executor's own thread and queue; ours: client/test_submitter.py, "
    "client/test_finalizer.py"
)
_WATCHER = "drives the official consumer of results by its own parts; ours: client/test_results.py"
_RELOAD = "has answers that this service never gives; ours: client/test_results.py"
_OWN_STRATEGIES = "a strategy of the user's own may be selected here"
_NO_LOG = "which part failed is in the error's text if all fail, and in no log"
_GOES_ON = "an error of one submission or registration leaves the Executor usable"
_CHECKED = "a resource_specification is checked when it is set: 'foo' is none of its keys"

_SERIALIZE = "test_serialization.py::test_"
_EXECUTOR = "test_executor.py::test_"
_SHELL = "test_shell_functions.py::test_"

DIFFERENCES: Final[dict[str, str]] = {
    "test_error_types.py::test_task_execution_failed_serialization_help_msg": (
        "the hint names what to do here, not the official documentation; ours: test_errors.py"
    ),
    f"{_SHELL}sandbox_warning_with_missing_env_vars": (
        "no warning is added to a command's standard error"
    ),
    f"{_SHELL}bad_walltime": "a wrong walltime is a ValueError, not a failed assertion",
    **dict.fromkeys(
        (
            f"{_SERIALIZE}combo_strategy_serialize_log_failures",
            f"{_SERIALIZE}combo_strategy_deserialize_log_failures",
        ),
        _NO_LOG,
    ),
    **dict.fromkeys(
        (
            f"{_SERIALIZE}validate_strategylike_errors_on_unknown_strategy",
            f"{_SERIALIZE}allowed_deserializers_errors_on_unknown_strategy",
            f"{_SERIALIZE}serialize_from_list_rejects_unknown_strategy",
        ),
        _OWN_STRATEGIES,
    ),
    f"{_EXECUTOR}map_raises": "map works here; ours: client/test_map.py",
    f"{_EXECUTOR}multiple_register_function_fails": (
        "a function's id is a UUID here; ours: client/test_submitter.py"
    ),
    f"{_EXECUTOR}register_source_code": "looks for a log of each registration",
    f"{_EXECUTOR}multiple_register_source_code_fails": "looks for a log of the error it raises",
    f"{_EXECUTOR}reload_tasks_none_completed[0]": "looks for a log that the returned list is empty",
    f"{_EXECUTOR}resource_specification[True-res_spec1]": _CHECKED,
    f"{_EXECUTOR}resource_specification_added_to_batch": _CHECKED,
    f"{_EXECUTOR}reload_tasks_requires_task_group_id": (
        "an Executor has its group from the start: a script can save it before it submits"
    ),
    **dict.fromkeys(
        (
            f"{_EXECUTOR}failed_registration_shuts_down_executor",
            f"{_EXECUTOR}failed_source_code_registration_shuts_down_executor",
            f"{_EXECUTOR}submit_value_error_if_no_endpoint",
        ),
        _GOES_ON,
    ),
    **dict.fromkeys(
        (
            f"{_EXECUTOR}reload_client_taskgroup_tasks_fails_gracefully",
            f"{_EXECUTOR}reload_handles_deserialization_error_gracefully",
            f"{_EXECUTOR}load_tasks",
            *(
                f"{_EXECUTOR}reload_chunks_tasks_requested[{tasks}]"
                for tasks in (1, 3, 500, 1023, 1024, 1025, 2047, 2048, 2049, 3071, 3072, 3073)
            ),
        ),
        _RELOAD,
    ),
    f"{_EXECUTOR}task_submitter_api_rate_limit": "there is no rate to limit here",
    **{
        f"{_EXECUTOR}{name}": _SUBMITTER
        for name in (
            "task_submission_info_stringification",
            "task_submission_snapshots_data",
            "executor_shutdown_idempotent",
            "executor_shutdown_idempotent_with",
            "executor_shutdown_wait",
            "executor_shutdown_cancel_futures",
            "executor_stuck_submitter_doesnt_hold_shutdown_if_cancel_futures",
            "task_submitter_respects_batch_size",
            "task_submitter_stops_executor_on_exception",
            "task_submitter_stops_executor_on_upstream_error_response",
            "sc25897_task_submit_correctly_handles_multiple_tg_ids",
            "task_submit_handles_multiple_user_endpoint_configs",
            "task_submitter_sets_future_metadata",
            "submit_tasks_stops_futures_on_bad_response",
        )
    },
    **{
        f"{_EXECUTOR}{name}": _WATCHER
        for name in (
            "reload_does_not_start_new_watcher",
            "reload_tasks_ignores_existing_futures",
            "task_submitter_handles_stale_result_watcher_gracefully",
            "result_queue_watcher_custom_port",
            "resultwatcher_stops_if_unable_to_connect",
            "resultwatcher_ignores_invalid_tasks",
            "resultwatcher_adds_executor_id_to_future",
            "resultwatcher_get_open_futures",
            "resultwatcher_cancels_futures_on_unexpected_stop",
            "resultwatcher_gracefully_handles_unexpected_exception",
            "resultwatcher_blocks_until_tasks_done",
            "resultwatcher_does_not_check_if_no_results",
            "resultwatcher_checks_match_if_results",
            "resultwatcher_repr",
            "resultwatcher_match_sets_exception",
            "resultwatcher_match_sets_result",
            "resultwatcher_match_handles_deserialization_error",
            "resultwatcher_match_calls_log_version_mismatch",
            "resultwatcher_onmessage_verifies_result_type",
            "resultwatcher_onmessage_sets_check_results_flag",
            "resultwatcher_stops_loop_on_open_failure",
            "resultwatcher_connection_closed_stops_loop",
            "resultwatcher_channel_closed_retries_then_shuts_down",
            "resultwatcher_connection_opened_resets_fail_counter",
            "resultwatcher_channel_opened_starts_consuming",
            "resultwatcher_amqp_acks_in_bulk",
            "resultwatcher_loads_ha_results",
            "resultwatcher_warns_of_incomplete_ha_result",
        )
    },
}

#: Tests that must not be run, and why.
NOT_RUN: Final[dict[str, str]] = {
    "test_shell_functions.py::test_bad_run_dir": "a superuser can write /NONEXISTENT, and would",
    "test_executor.py::test_one_resultwatcher_per_task_group": (
        "waits without an end for a result of its own mock; " + _WATCHER
    ),
}


def difference_of(test: str) -> str | None:
    """Return why a test fails here on purpose, `None` if it must pass.

    Args:
        test: its id in pytest.
    """
    name = plain(test)
    return DIFFERENCES.get(name) or DIFFERENCES.get(name.partition("[")[0])


def plain(test: str) -> str:
    """Return a test's id without the directories before its file."""
    path, colons, name = test.partition("::")
    return path.rpartition("/")[2] + colons + name
