"""The process that a `ProcessKeeper` starts, and the shells that it forks.

It is started isolated (`python -I -S`), from `main.py`, and uses only this package and the standard
library, so it starts in milliseconds. Here all imports are relative, since in that process the
package has the name `helper`. It is single-threaded: forking is safe and cheap.

Owner to helper, on a stream socket: a header of two 32-bit numbers (length, how many descriptors),
then JSON, with the descriptors as SCM_RIGHTS. Helper and shells to owner, on a SOCK_SEQPACKET
socket: one JSON list a packet.
"""

import struct

HEADER = struct.Struct("=II")
#: Requests of the owner besides signals 1..64, each as one byte on a shell's pipe.
KILL = 255
#: The most descriptors that the kernel passes in one message, less a few.
MAX_DESCRIPTORS = 250
#: Variable of a command's environment: after a SIGTERM, the seconds that processes left by the
#: command have to end, and so has the command itself when the owner is gone. All others are killed
#: at once.
NOTICE = "FLUX_ENDPOINT_NOTICE"
#: Exit statuses of a shell that could not start its commands, as of a POSIX shell.
NOT_FOUND = 127
NOT_EXECUTABLE = 126
