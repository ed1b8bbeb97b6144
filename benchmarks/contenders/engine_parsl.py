"""Parsl by itself, with its HighThroughputExecutor."""

from __future__ import annotations

from typing import Any

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from work import COMMAND, PATIENCE, WORKERS, Finish, Turn, large, same, typed

#: An app with a command: a Parsl worker runs the returned text with a shell and returns its status.
_COMMAND = typed("command", f"def command():\n    return {COMMAND!r}\n")


def main() -> None:
    turn = Turn()
    one_block = {"init_blocks": 1, "min_blocks": 1, "max_blocks": 1}
    executor = HighThroughputExecutor(
        address="127.0.0.1", max_workers_per_node=WORKERS, provider=LocalProvider(**one_block)
    )
    with parsl.load(
        Config(executors=[executor], run_dir=str(turn.directory / "runinfo"), strategy="none")
    ):
        apps = {f: parsl.python_app(f) for f in (same, large)}
        command = parsl.bash_app(_COMMAND)

        def submit(app: Any, *args: Any) -> Finish:
            future = app(*args)
            return lambda: future.result(PATIENCE)

        turn.functions(lambda function, *args: submit(apps[function], *args))
        turn.rate("commands", lambda _: submit(command), lambda _, value: value == 0)


if __name__ == "__main__":
    main()
