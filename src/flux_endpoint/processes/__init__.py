"""Process trees that are started, watched and reliably ended."""

from flux_endpoint.processes.keeper import Command, ProcessKeeper
from flux_endpoint.processes.lifeline import watch_parent
from flux_endpoint.processes.signals import signal_listener
from flux_endpoint.processes.waiting import is_readable

__all__ = ["Command", "ProcessKeeper", "is_readable", "signal_listener", "watch_parent"]
