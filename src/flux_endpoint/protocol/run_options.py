"""Options of a single call besides its resources, which client, service and endpoint validate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Final

from flux_endpoint.errors import FluxEndpointError, suggestion
from flux_endpoint.protocol.duration import parse_duration
from flux_endpoint.protocol.exceptions import class_name
from flux_endpoint.protocol.process_options import PROCESS_CHECKS, ProcessValueError, process_json

#: Key of an endpoint's metadata: the names of the options that it knows.
RUN_OPTIONS_KEY: Final = "run_options"

MAX_RETRIES = 50
#: The most conditions in `retry_on`, and characters of one.
MAX_CONDITIONS = 50
_LONGEST_NAME = 200
#: The condition that matches lost workers, nodes and jobs.
LOST = "lost"
#: The option with which a task is submitted held. Endpoints that know it take `TaskUrgency`.
HOLD: Final = "hold"
#: Seconds before the second attempt; the longest pause, unless the first one is longer.
FIRST_PAUSE, MAX_PAUSE = 1.0, 600.0
#: The longest first pause (s): a day.
MAX_FIRST_PAUSE = 86_400.0
#: The most characters of an invalid value that an error shows.
_SHOWN = 200


class RunOptionsError(FluxEndpointError, ValueError):
    """An option of a call has an unknown name or an invalid value; the text names the rule."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of a call.

    Attributes:
        retries: number of further attempts after the first one has failed.
        retry_on: failures after which there is another attempt: names of exceptions, exit codes,
            and `LOST`; empty: any exception, exit code other than 0, or loss.
        retry_delay: seconds before the second attempt; each further pause is twice as long.
        time_limit: seconds that an attempt may run on a worker; 0: no limit. Jobs have `walltime`.
        stdin: its standard input, or the path of a file with it; `None`: it has none.
        cwd: its working directory, absolute, or relative to the endpoint's `working_dir` (with
            `run_in_sandbox`, to the task's own); empty: that.
        env: variables to set, or with `None` to unset.
        hold: whether it waits until somebody releases it, or gives it an urgency.
    """

    retries: int = 0
    retry_on: tuple[str | int, ...] = ()
    retry_delay: float = FIRST_PAUSE
    time_limit: float = 0.0
    stdin: str | PurePosixPath | None = None
    cwd: str = ""
    env: Mapping[str, str | None] = field(default_factory=dict)
    hold: bool = False

    @property
    def process(self) -> dict[str, Any]:
        """The options that set up the task's process, as JSON has them."""
        return process_json(self.stdin, self.cwd, self.env)

    def pause(self, failures: int) -> float:
        """Return the longest pause (s) before the next attempt.

        Args:
            failures: number of failed attempts, at least 1.
        """
        longest = max(MAX_PAUSE, self.retry_delay)
        return min(self.retry_delay * 2.0 ** (failures - 1), longest)

    def as_json(self) -> dict[str, Any]:
        """Return the options that differ from the defaults."""
        defaults = RunOptions()
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in PROCESS_CHECKS and value != getattr(defaults, name)
        } | self.process


def parse_run_options(given: Mapping[str, Any]) -> RunOptions:
    """Validate options; `None` is the default of each.

    Raises:
        RunOptionsError: a name is unknown, a value invalid, or the options contradict.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        check = _CHECKS.get(name)
        if check is None:
            hint = suggestion(name, _CHECKS, "known options:")
            raise RunOptionsError(f"'{name}' is no option of a call; {hint}")
        if value is not None:
            values[name] = check(name, value)
    for name in ("retry_on", "retry_delay"):
        if name in values and not values.get("retries"):
            raise RunOptionsError(f"{name} has no effect without retries: say how many, retries=3")
    options = RunOptions(**values)
    try:
        _ = options.process
    except ProcessValueError as error:
        raise RunOptionsError(str(error)) from None
    return options


def check_for_job(options: RunOptions, resources: Mapping[str, Any]) -> None:
    """Check the options of a task that is a job.

    Args:
        options: the options.
        resources: its resource specification.

    Raises:
        RunOptionsError: one of them is for tasks on workers only, or contradicts the resources.
    """
    shell_options = resources.get("shell_options")  # not checked yet
    given = shell_options if isinstance(shell_options, Mapping) else {}
    names = {str(name).partition(".")[0] for name in given}
    if options.stdin is not None and "input" in names:
        raise RunOptionsError("stdin and the shell option 'input' contradict: set one of them")
    if options.time_limit:
        raise RunOptionsError(
            "time_limit is for tasks on workers: a job, which has a resource_specification, has "
            "walltime"
        )


def _wrong(name: str, value: object, rule: str) -> RunOptionsError:
    got = repr(value)
    return RunOptionsError(f"{name} must be {rule}, got {got[:_SHOWN]}{'…'[: len(got) > _SHOWN]}")


def _retries(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_RETRIES:
        raise _wrong(name, value, f"an integer from 0 to {MAX_RETRIES}")
    return value


def _retry_on(name: str, value: Any) -> tuple[str | int, ...]:
    single = isinstance(value, str | int | type)
    items = [value] if single or not isinstance(value, Iterable) else list(value)
    if not 0 < len(items) <= MAX_CONDITIONS:
        raise _wrong(name, value, f"one to {MAX_CONDITIONS} conditions")
    return tuple(_condition(name, each) for each in items)


def _condition(name: str, value: Any) -> str | int:
    if isinstance(value, type) and issubclass(value, BaseException):
        value = class_name(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if value == 0 or not -64 <= value <= 255:
            raise _wrong(name, value, "exit codes from 1 to 255, or negative signals from -64")
        return value
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isprintable():
        return value
    rule = f"exceptions (classes or their names), exit codes, or '{LOST}'"
    raise _wrong(name, value, rule)


def _retry_delay(name: str, value: Any) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise _wrong(name, value, f"seconds or a Flux Standard Duration ({error})") from error
    if math.isinf(seconds) or seconds > MAX_FIRST_PAUSE:
        raise _wrong(name, value, "at most a day")
    return seconds


def _time_limit(name: str, value: Any) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise _wrong(name, value, f"seconds or a Flux Standard Duration ({error})") from error
    return 0.0 if math.isinf(seconds) else seconds


def _of_process(name: str, value: Any) -> Any:
    try:
        return PROCESS_CHECKS[name](value)
    except ProcessValueError as error:
        raise RunOptionsError(f"{name} {error}".replace(" [", "[", 1)) from None


def _hold(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "retries": _retries,
    "retry_on": _retry_on,
    "retry_delay": _retry_delay,
    "time_limit": _time_limit,
    **dict.fromkeys(PROCESS_CHECKS, _of_process),
    HOLD: _hold,
}

#: The names of all options.
RUN_OPTIONS: Final = tuple(_CHECKS)
