"""Checks the arguments of command functions before a call is sent."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from flux_endpoint.functions import ShellFunction

#: The most command functions that a client remembers.
MAX_COMMANDS = 4096


class RegisteredCommands:
    """The command functions that one client has registered, by id. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: OrderedDict[str, ShellFunction] = OrderedDict()

    def add(self, function_id: str, fn: object) -> None:
        """Remember a copy of `fn` if it is a command function.

        Args:
            function_id: its id at the service.
            fn: any function.
        """
        if not isinstance(fn, ShellFunction):
            return
        with self._lock:
            self._by_id[function_id] = copy.copy(fn)
            if len(self._by_id) > MAX_COMMANDS:
                self._by_id.popitem(last=False)

    def check(self, function_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Check the arguments of a call if the function is one of the known command functions.

        Args:
            function_id: the function.
            args: positional arguments.
            kwargs: keyword arguments.

        Raises:
            TypeError: see `ShellFunction.check_call`.
            ValueError: likewise.
        """
        with self._lock:
            command = self._by_id.get(function_id)
        if command is not None:
            command.check_call(args, kwargs)
