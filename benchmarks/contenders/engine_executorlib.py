"""executorlib in a Flux instance: with persistent workers, or with a job for each function."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from executorlib import FluxJobExecutor

from work import PATIENCE, WORKERS, Finish, Turn, is_same, same


def main() -> None:
    turn = Turn()
    os.chdir(turn.directory)  # it writes into the working directory
    block = turn.options["block_allocation"]
    with FluxJobExecutor(
        max_workers=WORKERS, block_allocation=block, resource_dict={"cores": 1}
    ) as executor:

        def call(function: Callable[..., Any], *args: Any) -> Finish:
            future: Any = executor.submit(function, *args)
            return lambda: future.result(PATIENCE)

        turn.functions(call)
        turn.p50("job-p50", lambda n: call(same, n), is_same)
        turn.rate("jobs", lambda n: call(same, n), is_same)


if __name__ == "__main__":
    main()
