"""Calls of command functions are looked at before they are sent."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from flux_endpoint.functions import ShellFunction

#: How many command functions are remembered by their ids.
MAX_COMMANDS = 4096


class RegisteredCommands:
    """The command functions that one client has registered, by id. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: OrderedDict[str, ShellFunction] = OrderedDict()

    def add(self, function_id: str, fn: object) -> None:
        """Remember what `fn` is now, if it is a command function."""
        if not isinstance(fn, ShellFunction):
            return
        with self._lock:
            self._by_id[function_id] = copy.copy(fn)
            if len(self._by_id) > MAX_COMMANDS:
                self._by_id.popitem(last=False)

    def check(self, function_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise what a call would raise because of its arguments, if the function is known here.

        Raises:
            TypeError: as of `ShellFunction.check_call`.
            ValueError: likewise.
        """
        with self._lock:
            command = self._by_id.get(function_id)
        if command is not None:
            command.check_call(args, kwargs)
