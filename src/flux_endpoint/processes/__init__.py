"""Process trees that are started, watched and reliably ended."""

from flux_endpoint.processes.keeper import Command, ProcessKeeper
from flux_endpoint.processes.lifeline import watch_parent
from flux_endpoint.processes.signals import signal_listener
from flux_endpoint.processes.start_order import Gate, StartOrder
from flux_endpoint.processes.waiting import is_readable

__all__ = [
    "Command",
    "Gate",
    "ProcessKeeper",
    "StartOrder",
    "is_readable",
    "signal_listener",
    "watch_parent",
]
