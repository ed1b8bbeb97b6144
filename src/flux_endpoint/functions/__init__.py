"""Command tasks: `ShellFunction`, `MPIFunction`, `ShellResult`.

Importing this package registers the serialization strategy of command functions.
"""

from flux_endpoint.functions.execution import (
    GRACE,
    OUT_OF_TIME,
    WALLTIME_RETURNCODE,
    ExecutionOutcome,
    outcome_of,
)
from flux_endpoint.functions.mpi import MPIFunction
from flux_endpoint.functions.official import (
    OUR_RESULT,
    OfficialShellResult,
    official_code,
    read_function,
)
from flux_endpoint.functions.result import ShellResult
from flux_endpoint.functions.shell import ShellFunction
from flux_endpoint.functions.transport import (
    CommandFunctionCode,
    command_arguments,
    command_of,
    formatted_task,
    is_command,
    is_plain_json,
    read_arguments,
    read_command,
    serialize_arguments,
)

__all__ = [
    "GRACE",
    "OUR_RESULT",
    "OUT_OF_TIME",
    "WALLTIME_RETURNCODE",
    "CommandFunctionCode",
    "ExecutionOutcome",
    "MPIFunction",
    "OfficialShellResult",
    "ShellFunction",
    "ShellResult",
    "command_arguments",
    "command_of",
    "formatted_task",
    "is_command",
    "is_plain_json",
    "official_code",
    "outcome_of",
    "read_arguments",
    "read_command",
    "read_function",
    "serialize_arguments",
]
