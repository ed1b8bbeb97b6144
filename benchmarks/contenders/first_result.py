"""Our client, ready to submit: reads an endpoint's id and prints the time of the first result."""

from __future__ import annotations

import sys
import time

from flux_endpoint import Executor
from work import PATIENCE, same


def main() -> None:
    print("ready", flush=True)
    with Executor(sys.stdin.readline().strip()) as executor:
        if executor.submit(same, 1).result(PATIENCE) != 1:
            raise ValueError("the first result is wrong")
        print(time.time(), flush=True)


if __name__ == "__main__":
    main()
