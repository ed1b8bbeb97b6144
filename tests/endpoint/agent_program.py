"""An agent as a process of its own, to be killed.

Usage: `agent_program.py URL ENDPOINT_ID DIRECTORY [hold]`.

Says `submitted N` on standard output whenever its engine has got its Nth task.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from endpoint_world import ObedientEngine

from flux_endpoint.endpoint.agent import Agent
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.engine.base import EngineTask
from flux_endpoint.protocol.queues import endpoint_queues


class TellingEngine(ObedientEngine):
    def submit(self, task: EngineTask) -> None:
        super().submit(task)
        print("submitted", len(self.all_submitted), flush=True)


if __name__ == "__main__":
    url, endpoint_id, directory, *options = sys.argv[1:]
    engine = TellingEngine(hold="hold" in options)
    config = EndpointConfig(max_in_flight=100, prefetch=50)
    Agent(endpoint_queues(endpoint_id, url), engine, Path(directory), config).run()
