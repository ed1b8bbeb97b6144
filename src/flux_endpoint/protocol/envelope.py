"""Constants of the wire format that workers need without the schemas of `messages`."""

from __future__ import annotations

import json
from typing import Any

_encode = json.JSONEncoder(separators=(",", ":")).encode

#: First byte of each message.
VERSION_BYTE = b"\x01"
#: Key in a result's `details` for the return code of a command; negative: a signal.
RETURNCODE = "returncode"
#: Key in a result's `details` for the id, in decimal, of a task's Flux job.
JOBID = "flux_jobid"
#: Keys there for what is recorded of a run: the node's host name (of a job: its nodes, as a host
#: list), the worker's process id, the number of attempts if there was more than one, CPU time in
#: seconds, and peak memory in bytes.
NODE, WORKER, ATTEMPTS = "node", "worker", "attempts"
CPU_TIME, MAX_RSS = "cpu_time", "max_rss"


def compact_json(value: Any) -> bytes:
    """Return `value` as JSON without spaces.

    Raises:
        TypeError, ValueError: JSON can't express it.
    """
    return _encode(value).encode()
