"""Our client or the official one, on our endpoint or the official one, through our service."""

from __future__ import annotations

import os
import resource
from typing import Any

from work import COMMAND, MIB, PATIENCE, Finish, Turn, large, run, same, went_well

#: Size (MiB) of the large results.
RESULT = 5


def make_executor(turn: Turn) -> tuple[Any, Any]:
    """Return an executor and a command of the requested client."""
    endpoint = turn.options["endpoint_id"]
    if turn.options["client"] == "ours":
        from flux_endpoint import Executor, ShellFunction

        return Executor(endpoint), ShellFunction(COMMAND)
    import globus_compute_sdk as official

    # Its fastest settings: by default, it waits for 4 s between small submissions.
    fast = {"api_burst_limit": 8, "api_burst_window_s": 1}
    return official.Executor(endpoint, **fast), official.ShellFunction(COMMAND)


def main() -> None:
    turn = Turn()
    executor, command = make_executor(turn)
    payload = os.urandom(MIB)
    with executor:

        def submit(function: Any, *args: Any) -> Finish:
            future = executor.submit(function, *args)
            return lambda: future.result(PATIENCE)

        turn.functions(submit, "e2e-")
        turn.rate("e2e-commands", lambda _: submit(command), went_well)
        turn.rate("e2e-megabyte", lambda _: submit(same, payload), lambda _, v: v == payload)
        if turn.wants("peak-client"):
            run(
                lambda _: submit(large, RESULT * MIB),
                lambda _, value: len(value) == RESULT * MIB,
                turn.counts["peak-client"],
            )
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
            turn.answer("peak-client", peak / 1024)


if __name__ == "__main__":
    main()
