"""The result of a command."""

from __future__ import annotations

#: The most characters of each stream that `str()` shows.
_SHOWN_LINES = 10
_SHOWN_CHARACTERS = 1024


class ShellResult:
    """The result of a command.

    Attributes:
        cmd: the command line that was run.
        stdout: the last lines of its standard output.
        stderr: the last lines of its standard error.
        returncode: its exit code; negative: the signal that killed it; 124: its walltime was over.
        exception_name: `subprocess.CalledProcessError` if the return code is not 0,
            `subprocess.TimeoutExpired` if the walltime was over, else `None`.
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
        """Return the exit code and the ends of the streams, in the official package's layout.

        Programs may search it for `exit code: 0`.
        """
        text = f"exit code: {self.returncode}\n{_shown('stdout', self.stdout)}"
        if self.returncode == 0:
            return text
        text += f"\n\n{_shown('stderr', self.stderr)}"
        return f"{text}\n\nexception: {self.exception_name}" if self.exception_name else text

    def _repr_html_(self) -> str:
        from flux_endpoint.notebook import table  # noqa: PLC0415 - workers do without it

        return table(
            type(self).__name__,
            [
                ("exit code", self.returncode),
                ("exception", self.exception_name),
                ("command", self.cmd),
                ("stdout", _shown_end(self.stdout) or None),
                ("stderr", _shown_end(self.stderr) or None),
            ],
        )

    def __repr__(self) -> str:
        names = ["returncode", "cmd", "exception_name", "stdout", "stderr"]
        if self.exception_name is None:
            names.remove("exception_name")
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"


def _shown_end(stream: str) -> str:
    """Return the last lines of a stream, on lines of their own."""
    text = stream.strip("\n")
    end = text[-_SHOWN_CHARACTERS:].splitlines()[-_SHOWN_LINES:]
    return "\n".join(end) + "\n" * bool(end)


def _shown(name: str, stream: str) -> str:
    text = stream.lstrip("\n").rstrip()
    end = "\n".join(text[-_SHOWN_CHARACTERS:].splitlines()[-_SHOWN_LINES:])
    cut = "" if end == text else f"[... truncated; see .{name} for full output ...]\n"
    return f"   {name}:\n{cut}{end}"
