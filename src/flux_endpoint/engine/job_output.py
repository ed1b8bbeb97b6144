"""The last lines of the files that a job's output was redirected to."""

from __future__ import annotations

import os

from flux_endpoint.functions.snippet import last_lines

#: The most lines and bytes that are read.
_LINES, _BYTES = 1000, 1 << 20


def end_of_file(path: str, cwd: str) -> str:
    """Return the last lines of a file, or a line that names it if it can't be read from here.

    Args:
        path: the file, as the job's specification has it.
        cwd: the job's working directory, the base of a relative path.
    """
    whole = os.path.join(cwd, path)  # noqa: PTH118 - text in, text out
    try:
        # Opening a named pipe must not block.
        descriptor = os.open(whole, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return (
            f"[output went to {whole}, which is not here (any more); "
            "that of a task is in `flux-endpoint task`]\n"
        )
    except OSError as error:
        return f"[output is in {whole}, which can't be read here: {error.strerror}]\n"
    try:
        return last_lines(descriptor, 0, _LINES, _BYTES)
    except OSError as error:
        return f"[output is in {whole}, which can't be read here: {error.strerror}]\n"
    finally:
        os.close(descriptor)
