"""Process trees that are started, watched and surely ended."""

from flux_endpoint.processes.keeper import Command, ProcessKeeper
from flux_endpoint.processes.lifeline import watch_parent
from flux_endpoint.processes.tree import end_descendants, end_tree

__all__ = ["Command", "ProcessKeeper", "end_descendants", "end_tree", "watch_parent"]
