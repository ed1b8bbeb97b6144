"""Constants of the wire format that workers need without the schemas of `messages`."""

from __future__ import annotations

#: First byte of each message.
VERSION_BYTE = b"\x01"
#: Key in a result's `details` for the return code of a command; negative: a signal.
RETURNCODE = "returncode"
#: Key in a result's `details` for the id, in decimal, of a task's Flux job.
JOBID = "flux_jobid"
