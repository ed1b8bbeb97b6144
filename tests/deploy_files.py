"""Reads the files in `deploy/` as their programs do: Compose, RabbitMQ, systemd, Podman."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import yaml

from flux_endpoint.cli.main import cli

DEPLOY = Path(__file__).parents[1] / "deploy"

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")


def fill_in(content: Any, values: dict[str, str]) -> Any:
    """Return `content` with variables replaced as Compose does.

    Args:
        content: a part of a Compose file.
        values: values of the variables.

    Raises:
        KeyError: a variable has neither a value nor a default.
    """
    if isinstance(content, dict):
        return {key: fill_in(value, values) for key, value in content.items()}
    if isinstance(content, list):
        return [fill_in(each, values) for each in content]
    if not isinstance(content, str):
        return content

    def value(found: re.Match[str]) -> str:
        given = values.get(found["name"], "")
        if given or found["kind"] == "-":
            return given or found["text"]
        raise KeyError(found["name"])

    return _VARIABLE.sub(value, content)


def variables_in(content: Any) -> dict[str, bool]:
    """Return the variables in a part of a Compose file, and whether each is required."""
    found: dict[str, bool] = {}
    for each in _VARIABLE.finditer(yaml.safe_dump(content, width=10_000)):
        found[each["name"]] = found.get(each["name"], False) or each["kind"] == "?"
    return found


def read_variables(path: Path) -> dict[str, str]:
    """Return the variables in an environment file."""
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def read_settings(text: str) -> dict[str, str]:
    """Return the settings of a `rabbitmq.conf`."""
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def command(*path: str) -> click.Command:
    """Return a command of `flux-endpoint` by its path, e.g. `command("service", "run")`."""
    found: click.Command = cli
    for name in path:
        assert isinstance(found, click.Group)
        below = found.get_command(click.Context(found), name)
        assert below is not None, f"flux-endpoint {' '.join(path)}: no such command"
        found = below
    return found


def variables_of(*path: str) -> set[str]:
    """Return the environment variables for the options of a command."""
    names: set[str] = set()
    for parameter in command(*path).params:
        if isinstance(parameter.envvar, str):
            names.add(parameter.envvar)
    return names


class Unit:
    """A systemd unit: section -> directive -> values, in order."""

    def __init__(self, path: Path) -> None:
        self.sections: dict[str, dict[str, list[str]]] = {}
        section: dict[str, list[str]] = {}
        for line in path.read_text().splitlines():
            if line.startswith("["):
                section = self.sections.setdefault(line.strip("[]"), {})
            elif line and not line.startswith("#"):
                name, _, value = line.partition("=")
                section.setdefault(name, []).append(value)

    def one(self, section: str, name: str) -> str:
        """Return the value of a directive that occurs exactly once."""
        (value,) = self.sections[section][name]
        return value


class Containerfile:
    """A container file: instructions by stage; the stage "" precedes the first `FROM`."""

    def __init__(self, path: Path) -> None:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
        self.stages: dict[str, list[tuple[str, str]]] = {"": []}
        stage = ""
        for line in filter(None, joined.splitlines()):
            instruction, _, rest = line.partition(" ")
            if instruction == "FROM":
                stage = rest.partition(" AS ")[2]
                self.stages[stage] = []
            self.stages[stage].append((instruction, rest.strip()))

    def all(self, stage: str, instruction: str) -> list[str]:
        """Return the arguments of all instructions of one kind in a stage."""
        return [rest for name, rest in self.stages[stage] if name == instruction]

    def environment(self, stage: str) -> dict[str, str]:
        """Return the variables that a stage sets with `ENV`."""
        pairs = (pair for text in self.all(stage, "ENV") for pair in text.split())
        return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}

    def arguments(self) -> dict[str, str]:
        """Return the build arguments and their defaults."""
        return {name: value for name, _, value in (a.partition("=") for a in self.all("", "ARG"))}
