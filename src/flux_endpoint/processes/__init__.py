"""Process trees that are started, watched and surely ended."""

from flux_endpoint.processes.keeper import Command, ProcessKeeper
from flux_endpoint.processes.lifeline import watch_parent

__all__ = ["Command", "ProcessKeeper", "watch_parent"]
