"""`flux-endpoint jobspec`: the jobspec of a command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import yaml

from flux_endpoint.engine.environment import job_environment
from flux_endpoint.engine.jobspec import JobRequest, build_jobspec
from flux_endpoint.protocol.resources import parse_resources


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--resources",
    default="{}",
    metavar="JSON",
    help="The resource specification, as JSON or YAML.",
)
@click.option("--format", "form", type=click.Choice(["yaml", "json"]), default="yaml")
@click.option("--environment/--no-environment", default=True, help="Include this environment.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def jobspec(resources: str, form: str, environment: bool, command: tuple[str, ...]) -> None:
    """Print the jobspec of a command.

    \b
    flux-endpoint jobspec --resources '{"num_nodes": 2, "ranks_per_node": 4}' -- app --in x
    flux-endpoint jobspec --format json -- hostname | flux job submit
    """  # noqa: D301 - click wants the character itself
    try:
        given = yaml.safe_load(resources)
    except yaml.YAMLError as error:
        where = getattr(error, "problem", None) or "it can't be read"
        raise click.BadParameter(
            f"{resources!r} is neither JSON nor YAML: {where}", param_hint="--resources"
        ) from error
    request = JobRequest(
        command=command,
        cwd=str(Path.cwd()),
        environment=job_environment(os.environ) if environment else {},
        resources=parse_resources(given if given is not None else {}),
    )
    built = build_jobspec(request)
    if form == "json":
        click.echo(json.dumps(built, indent=2))
    else:
        click.echo(yaml.safe_dump(built, sort_keys=False), nl=False)
