"""Dependencies and cache of executorlib in a Flux instance, with persistent workers."""

from __future__ import annotations

import os
from typing import Any

from executorlib import FluxJobExecutor

from feature_work import measure
from work import WORKERS, Turn


def make_executor(**more: Any) -> FluxJobExecutor:
    return FluxJobExecutor(
        max_workers=WORKERS, block_allocation=True, resource_dict={"cores": 1}, **more
    )


def main() -> None:
    turn = Turn()
    os.chdir(turn.directory)  # it writes into the working directory
    # It has no retries: its `restart_limit` is for workers that end.
    with make_executor() as executor:
        measure(turn, chain=executor.submit, retry=None, cache=None)
    if turn.wants("cached"):
        with make_executor(cache_directory="cache") as executor:
            measure(turn, chain=None, retry=None, cache=executor.submit)


if __name__ == "__main__":
    main()
