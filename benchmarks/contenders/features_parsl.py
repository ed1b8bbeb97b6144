"""Dependencies, retries and memoization of Parsl, with its HighThroughputExecutor."""

from __future__ import annotations

from typing import Any

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from feature_work import FAILURES, add_one, flaky, measure, remembered
from work import WORKERS, Turn


def main() -> None:
    turn = Turn()
    one_block = {"init_blocks": 1, "min_blocks": 1, "max_blocks": 1}
    executor = HighThroughputExecutor(
        address="127.0.0.1", max_workers_per_node=WORKERS, provider=LocalProvider(**one_block)
    )
    config = Config(
        executors=[executor],
        run_dir=str(turn.directory / "runinfo"),
        strategy="none",
        retries=FAILURES,
    )
    with parsl.load(config):
        apps = {each: parsl.python_app(each) for each in (add_one, flaky)}
        apps[remembered] = parsl.python_app(remembered, cache=True)

        def submit(function: Any, argument: Any) -> Any:
            return apps[function](argument)

        measure(turn, chain=submit, retry=submit, cache=submit)


if __name__ == "__main__":
    main()
