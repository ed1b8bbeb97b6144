"""An engine with blocks as a process of its own, to be killed.

Usage: `engine_program.py DIRECTORY TASK_ID COMMAND SPECIFICATION`: runs one command, as the
resource specification in JSON says.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine_world import World, buffer_of

from flux_endpoint.functions import ShellFunction

if __name__ == "__main__":
    directory, task_id, command, specification = sys.argv[1:]
    world = World("flux", Path(directory), blocks={"walltime": "5m", "grace": "1m"})
    buffer = buffer_of(ShellFunction(command))
    world.submit_buffer(buffer, json.loads(specification), task_id=task_id)
    signal.pause()
