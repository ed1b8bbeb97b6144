"""Many calls as one task group, without a future for each: submission, states and results."""

from flux_endpoint.client.bulk.task_group import TaskGroup, existing_group, open_groups, submit_bulk

__all__ = ["TaskGroup", "existing_group", "open_groups", "submit_bulk"]
