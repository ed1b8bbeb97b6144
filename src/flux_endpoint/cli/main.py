"""The command `flux-endpoint`, and its list of commands.

Each command is imported when it is used, so that no command needs another's dependencies.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import locale
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from flux_endpoint.cli.exits import ExitCode
from flux_endpoint.cli.failures import tell
from flux_endpoint.cli.process import prepare_process, quick_imports
from flux_endpoint.errors import suggestion

#: Set in the environment when the shell asks for completions.
COMPLETE_VARIABLE = "_FLUX_ENDPOINT_COMPLETE"


@dataclass(frozen=True)
class Entry:
    """A command: "module:attribute" of its implementation, and its help in the list."""

    source: str
    help: str


#: The commands by purpose.
SECTIONS = {
    "Run": {
        "up": Entry("stack:up", "Run broker, service and one endpoint on this machine."),
        "down": Entry("stack:down", "End what `up` runs, and wait until it is gone."),
        "configure": Entry("endpoint:configure", "Create an endpoint and its configuration file."),
        "render": Entry(
            "render:render", "Show what a multi-user endpoint's template makes of a user's values."
        ),
        "start": Entry("endpoint:start", "Start an endpoint."),
        "stop": Entry("endpoint:stop", "Stop an endpoint, and wait until it is gone."),
        "restart": Entry(
            "restart:restart", "Stop an endpoint, and start it again in the background."
        ),
        "delete": Entry("delete:delete_endpoint", "Delete an endpoint, here and at the service."),
        "service": Entry(
            "service:service", "Run the REST service, and administer it: users, tokens, limits."
        ),
    },
    "Monitor and control": {
        "status": Entry(
            "status:status",
            "Show the service, its broker and the endpoints: what runs, what waits, how fast.",
        ),
        "dashboard": Entry(
            "dashboard:dashboard",
            "Print a link to the service's live page: what runs, what waits, what failed.",
        ),
        "list": Entry(
            "endpoint:list_endpoints", "List the endpoints, their status, and what runs their jobs."
        ),
        "tasks": Entry(
            "tasks:tasks",
            "List tasks, the newest first: function, state, age, runtime, return code, job.",
        ),
        "task": Entry(
            "task:task",
            "Show one task: its timeline with Flux's events, worker, resources, output, error.",
        ),
        "group": Entry(
            "group:group",
            "Show how far a task group is: done, running, left, failures by kind, expected end.",
        ),
        "trace": Entry("trace:trace", "Draw a run: which worker or job had which task when."),
        "cache": Entry(
            "cache:cache", "Show which results Executors with cache=True use again, or clear them."
        ),
        "data": Entry(
            "data:data", "Show or clean the stores of large arguments and results on this machine."
        ),
        "cancel": Entry("cancel:cancel", "End tasks and all of their processes."),
        "urgency": Entry("urgency:urgency", "Hold or release tasks, or change their order."),
        "attach": Entry(
            "attach:attach",
            "Follow a task's job, or any job of an endpoint's instance: its events and output.",
        ),
        "logs": Entry(
            "logs:logs", "Show the logs of endpoints and of the programs that `up` runs."
        ),
    },
    "Set up": {
        "doctor": Entry("doctor:doctor", "Run all checks, and say how to fix what is wrong."),
        "plugins": Entry(
            "plugins:plugins",
            "List the plugins for Flux: where they are, and the lines that enable each.",
        ),
        "completion": Entry(
            "completion:completion", "Print the code that makes a shell complete this command line."
        ),
        "jobspec": Entry("jobspec:jobspec", "Print the jobspec of a command."),
    },
}
COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].source.partition(":")
        with quick_imports():
            found = importlib.import_module(f"flux_endpoint.cli.{module}")
        command: click.Command = getattr(found, attribute)
        return _with_debug(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = suggestion(args[0], COMMANDS, "there are:")
            raise click.UsageError(f"no command is called {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        for section, entries in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, entry.help) for name, entry in entries.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [
            *(
                CompletionItem(name, help=entry.help)
                for name, entry in COMMANDS.items()
                if name.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]


def _note_debug(ctx: click.Context, _parameter: click.Parameter, debug: bool) -> None:
    if debug:
        ctx.meta["debug"] = True


def _with_debug(command: click.Command) -> click.Command:
    """Accept `--debug` after the command's name, too."""
    if not any(parameter.name == "debug" for parameter in command.params):
        option = click.Option(
            ["--debug"], is_flag=True, hidden=True, expose_value=False, callback=_note_debug
        )
        command.params.append(option)
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flux-endpoint")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_note_debug,
    help="Show tracebacks.",
)
def cli() -> None:
    """Functions as a service for clusters that run Flux."""


def main(args: Sequence[str] | None = None, prog_name: str | None = None) -> None:
    """Run the command line and exit, with a code of `exits.ExitCode`.

    A user's mistake is reported in one sentence, without a traceback.

    Args:
        args: arguments after the command's name; default: those of this process.
        prog_name: name of the command in its help.
    """
    if args is None:
        _use_utf8()
    prepare_process()
    # For `flux endpoint …` only the help has this name, not the processes that it starts.
    called = os.environ.pop("FLUX_ENDPOINT_PROG", "flux-endpoint")
    name = prog_name or called
    if COMPLETE_VARIABLE in os.environ:
        with contextlib.suppress(Exception):  # completion must not print errors
            cli.main(args=[], prog_name=name, complete_var=COMPLETE_VARIABLE)
        sys.exit(ExitCode.FAILED)
    sys.exit(_run(list(sys.argv[1:] if args is None else args), name))


def _use_utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale has another encoding.

    File names and jobspecs are UTF-8, and an endpoint must not fail because of them. Output uses
    the locale's encoding; in the locale C that is UTF-8, as for Python.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606
    encoding = codecs.lookup(locale.getencoding()).name
    if sys.flags.utf8_mode and encoding not in ("utf-8", "ascii"):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError):
                stream.reconfigure(encoding=encoding)  # type: ignore[union-attr]


def _run(args: list[str], name: str) -> int:
    meta: dict[str, Any] = {}
    try:
        with cli.make_context(name, args) as context:
            meta = context.meta
            status = cli.invoke(context)
            sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, it is shown
        known = next((each for each in args if each in COMMANDS), "")
        return tell(error, command=f"{name} {known}".strip(), debug="debug" in meta)
    return status if isinstance(status, int) else 0
