"""The end of what a job wrote into a file that it was told to."""

from __future__ import annotations

import os

from flux_endpoint.functions.snippet import last_lines

#: Lines and bytes that are read at most.
_LINES, _BYTES = 1000, 1 << 20


def end_of_file(path: str, cwd: str) -> str:
    """Return the last lines of a file; where it can't be read from here, a line that names it.

    Args:
        path: the file, as its job was given it.
        cwd: the job's working directory, where a relative path begins.
    """
    whole = os.path.join(cwd, path)  # noqa: PTH118 - text in, text out
    try:
        # A named pipe must not hold us up.
        descriptor = os.open(whole, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        return f"[output is in {whole}, which can't be read here: {error.strerror}]\n"
    try:
        return last_lines(descriptor, 0, _LINES, _BYTES)
    except OSError as error:
        return f"[output is in {whole}, which can't be read here: {error.strerror}]\n"
    finally:
        os.close(descriptor)
