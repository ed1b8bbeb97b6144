"""What a command left behind."""

from __future__ import annotations

#: How much of each stream `str()` shows.
_SHOWN_LINES = 10
_SHOWN_CHARACTERS = 1024


class ShellResult:
    """The end of a command.

    Attributes:
        cmd: the command line as it was run.
        stdout: the last lines of its standard output.
        stderr: the last lines of its standard error.
        returncode: its exit code; negative: the signal that killed it; 124: its walltime ran out.
        exception_name: `subprocess.CalledProcessError` if the return code is not 0,
            `subprocess.TimeoutExpired` if the walltime ran out, else `None`.
    """

    def __init__(
        self,
        cmd: str,
        stdout: str,
        stderr: str,
        returncode: int,
        exception_name: str | None = None,
    ) -> None:
        self.cmd = cmd
        self.stdout = stdout
        self.stderr = stderr
        self.returncode = returncode
        self.exception_name = exception_name

    def __str__(self) -> str:
        parts = [f"return code {self.returncode}", _shown("stdout", self.stdout)]
        if self.returncode != 0:
            if self.exception_name:
                parts[0] += f" ({self.exception_name})"
            parts.append(_shown("stderr", self.stderr))
        return "\n".join(parts)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(cmd={self.cmd!r}, stdout={self.stdout!r}, "
            f"stderr={self.stderr!r}, returncode={self.returncode!r}, "
            f"exception_name={self.exception_name!r})"
        )


def _shown(name: str, stream: str) -> str:
    text = stream.strip("\n").rstrip()
    if not text:
        return f"{name}: empty"
    end = "\n".join(text[-_SHOWN_CHARACTERS:].split("\n")[-_SHOWN_LINES:])
    cut = "" if end == text else f", the end of it (all of it is in .{name})"
    return f"{name}{cut}:\n{end}"
