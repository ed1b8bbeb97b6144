from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flux_endpoint.processes import Command, ProcessKeeper


class Group:
    """A keeper whose callbacks end in a queue, and short ways to start things with it."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.keeper = ProcessKeeper(
            lambda *args: self.calls.put(("started", *args)),
            lambda *args: self.calls.put(("exit", *args)),
            lambda *args: self.calls.put(("end", *args)),
            lambda *args: self.calls.put(("failed", *args)),
        )
        self.keeper.start()

    def command(self, *argv: str, **options: Any) -> Command:
        options.setdefault("cwd", "/")
        options.setdefault("env", dict(os.environ))
        return Command(argv, **options)

    def shell(self, script: str, **options: Any) -> Command:
        return self.command("sh", "-c", script, **options)

    def spawn(self, *commands: Command, key: str = "g") -> None:
        self.keeper.spawn(key, commands)

    def next(self) -> tuple[Any, ...]:
        return self.calls.get(timeout=20)

    def all_calls(self) -> list[tuple[Any, ...]]:
        """All calls so far: of a keeper that is closed, all that there are."""
        return [self.calls.get() for _ in range(self.calls.qsize())]

    def until_end(self, key: str = "g") -> list[tuple[Any, ...]]:
        """All calls up to and including the group's last."""
        seen = []
        while True:
            seen.append(self.next())
            if seen[-1][:2] == ("end", key):
                return seen

    def run(self, *commands: Command) -> list[tuple[Any, ...]]:
        self.spawn(*commands)
        return self.until_end()


@pytest.fixture
def make_group() -> Iterator[Callable[[], Group]]:
    groups: list[Group] = []

    def make() -> Group:
        groups.append(Group())
        return groups[-1]

    yield make
    for group in groups:
        group.keeper.close()


@pytest.fixture
def group(make_group: Callable[[], Group]) -> Group:
    return make_group()


class Lives:
    """A pipe that processes inherit: it ends when the last of them is dead."""

    def __init__(self) -> None:
        self.readable, self.writable = os.pipe()

    def close_ours(self) -> None:
        os.close(self.writable)

    def read_line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self.readable, 1)
            assert byte, f"everything died after {line!r}"
            line += byte
        return line.decode().strip()

    def wait_until_all_are_dead(self) -> None:
        while os.read(self.readable, 4096):
            pass


@pytest.fixture
def lives() -> Iterator[Lives]:
    lives = Lives()
    yield lives
    os.close(lives.readable)
