"""An Executor that is garbage may be collected at any point of any thread."""

from __future__ import annotations

import gc
import threading
import uuid

import pytest

from flux_endpoint import Client, Executor
from flux_endpoint.client import event_streams, streams


@pytest.mark.parametrize("lock", [streams._shared.lock, event_streams._shared.lock])
def test_collecting_one_waits_for_no_lock(client: Client, lock) -> None:
    executors = [Executor(uuid.uuid4(), client)]
    collector = threading.Thread(target=lambda: (executors.clear(), gc.collect()), daemon=True)
    with lock:  # as a thread has it that is just then starting a stream
        collector.start()
        collector.join(10)
        assert not collector.is_alive()
