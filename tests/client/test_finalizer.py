"""An Executor that is garbage may be collected at any point of any thread."""

from __future__ import annotations

import gc
import threading
import uuid

from flux_endpoint import Client, Executor
from flux_endpoint.client import streams


def test_collecting_one_waits_for_no_lock(client: Client) -> None:
    executors = [Executor(uuid.uuid4(), client)]
    collector = threading.Thread(target=lambda: (executors.clear(), gc.collect()), daemon=True)
    with streams._shared.lock:  # as a thread has it that is just then starting a stream
        collector.start()
        collector.join(10)
        assert not collector.is_alive()
