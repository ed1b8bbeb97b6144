from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flux_endpoint.engine.local import LocalExecutor

Spec = Callable[..., str]


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    with LocalExecutor(nodes=2, cores_per_node=2, gpus_per_node=2) as executor:
        yield executor


@pytest.fixture
def spec() -> Spec:
    """Makes jobspecs that run a shell script."""

    def make(script: str, *, slots: int = 1, gpus: int = 0, **system: Any) -> str:
        within = [{"type": "core", "count": 1}, {"type": "gpu", "count": gpus}]
        slot = {"type": "slot", "count": slots, "label": "task", "with": within}
        task = {"command": ["sh", "-c", script], "slot": "task", "count": {"per_slot": 1}}
        environment = {"PATH": os.environ["PATH"], **system.pop("environment", {})}
        system = {"duration": 0, "cwd": "/", "environment": environment, **system}
        return json.dumps(
            {"version": 1, "resources": [slot], "tasks": [task], "attributes": {"system": system}}
        )

    return make
