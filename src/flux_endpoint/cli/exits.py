"""Exit codes, similar to `sysexits.h`, and the exit codes of errors."""

from __future__ import annotations

from enum import IntEnum

import click

from flux_endpoint.errors import (
    AmqpError,
    BackgroundError,
    ConfigurationError,
    EndpointGoneError,
    EngineError,
    FluxEndpointError,
    InstanceLostError,
    NotFoundError,
    RecordError,
    ServiceError,
    ServiceUnreachableError,
    StillTryingError,
)


class ExitCode(IntEnum):
    """Exit codes of all commands; `attach` may also end with the exit code of its job."""

    OK = 0
    FAILED = 1
    USAGE = 64
    REFUSED = 65
    NOT_FOUND = 66
    UNAVAILABLE = 69
    BUG = 70
    FILES = 74
    INSTANCE_LOST = 75
    PERMISSION = 77
    CONFIGURATION = 78
    INTERRUPTED = 130
    CLOSED_PIPE = 141


#: Meanings, for the manual page.
MEANINGS = {
    ExitCode.OK: "Done.",
    ExitCode.FAILED: "Not done, or a check failed (an endpoint is offline, for example).",
    ExitCode.USAGE: "The command line is wrong.",
    ExitCode.REFUSED: "The service refused the request.",
    ExitCode.NOT_FOUND: "There is no such endpoint, task, job, token or log; or the service says "
    "that the endpoint that was running does not exist any more.",
    ExitCode.UNAVAILABLE: "The service, its message broker or Flux can't be reached.",
    ExitCode.BUG: "An internal error of Flux Endpoint; the message says where its details are.",
    ExitCode.FILES: "A file can't be read or written.",
    ExitCode.INSTANCE_LOST: "The Flux instance that an endpoint ran in is gone; if you start the "
    "endpoint in another one, the remaining tasks run there.",
    ExitCode.PERMISSION: "Not permitted: the token is not valid, or it is another user's.",
    ExitCode.CONFIGURATION: "A configuration, a setting or a credentials file is missing or wrong.",
    ExitCode.INTERRUPTED: "Ctrl-C.",
    ExitCode.CLOSED_PIPE: "Nobody reads the output any more.",
}


#: The first class that an error is an instance of determines its code.
_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (click.UsageError, ExitCode.USAGE),
    (click.Abort, ExitCode.INTERRUPTED),
    (KeyboardInterrupt, ExitCode.INTERRUPTED),
    (ServiceUnreachableError, ExitCode.UNAVAILABLE),
    (StillTryingError, ExitCode.UNAVAILABLE),
    (AmqpError, ExitCode.UNAVAILABLE),
    (InstanceLostError, ExitCode.INSTANCE_LOST),
    (EngineError, ExitCode.UNAVAILABLE),
    (NotFoundError, ExitCode.NOT_FOUND),
    (EndpointGoneError, ExitCode.NOT_FOUND),
    (ConfigurationError, ExitCode.CONFIGURATION),
    (RecordError, ExitCode.FILES),
    (FluxEndpointError, ExitCode.FAILED),
    (click.ClickException, ExitCode.FAILED),
    (BrokenPipeError, ExitCode.CLOSED_PIPE),
    (PermissionError, ExitCode.PERMISSION),
    (OSError, ExitCode.FILES),
)
#: Exit codes for the service's error codes; others are `ExitCode.REFUSED`.
_HTTP_CODES = {
    401: ExitCode.PERMISSION,
    403: ExitCode.PERMISSION,
    404: ExitCode.NOT_FOUND,
    429: ExitCode.UNAVAILABLE,
}


def exit_code_of(error: BaseException) -> ExitCode:
    """Return the exit code of a command that failed with `error`."""
    if isinstance(error, ServiceError):
        if error.code in {"NOT_A_FLUX_ENDPOINT_SERVICE", "SERVICE_TOO_OLD"}:
            return ExitCode.CONFIGURATION
        return _HTTP_CODES.get(error.http_status, ExitCode.REFUSED)
    if isinstance(error, BackgroundError) and error.exit_status in MEANINGS:
        return ExitCode(error.exit_status)
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.BUG)
