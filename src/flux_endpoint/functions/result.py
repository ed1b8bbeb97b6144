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
        """Return the exit code and the ends of the streams, laid out as the official package does.

        Programs may look for `exit code: 0` in it.
        """
        text = f"exit code: {self.returncode}\n{_shown('stdout', self.stdout)}"
        if self.returncode == 0:
            return text
        text += f"\n\n{_shown('stderr', self.stderr)}"
        return f"{text}\n\nexception: {self.exception_name}" if self.exception_name else text

    def __repr__(self) -> str:
        names = ["returncode", "cmd", "exception_name", "stdout", "stderr"]
        if self.exception_name is None:
            names.remove("exception_name")
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"


def _shown(name: str, stream: str) -> str:
    text = stream.lstrip("\n").rstrip()
    end = "\n".join(text[-_SHOWN_CHARACTERS:].splitlines()[-_SHOWN_LINES:])
    cut = "" if end == text else f"[... truncated; see .{name} for full output ...]\n"
    return f"   {name}:\n{cut}{end}"
