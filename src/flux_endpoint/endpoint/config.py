"""An endpoint's `config.yaml`: its options, and the messages for invalid ones."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from flux_endpoint.amqp.bundle import MAX_PARTS
from flux_endpoint.endpoint.journal import KEEP_DONE
from flux_endpoint.endpoint.metrics import parse_address
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.errors import ConfigurationError, suggestion
from flux_endpoint.protocol.duration import parse_duration
from flux_endpoint.protocol.rest import Principal, UuidText

#: Engines of the official endpoint, which may appear in configurations of its users.
OFFICIAL_ENGINES = frozenset(
    {
        "GlobusComputeEngine",
        "GlobusMPIEngine",
        "HighThroughputEngine",
        "ProcessPoolEngine",
        "ThreadPoolEngine",
    }
)

#: At least this many messages are prefetched while others are processed, if there are many tasks.
_MESSAGES_AHEAD = 16
#: The protocol's limit of `prefetch`.
MAX_PREFETCH = 65_535


Config = TypeVar("Config", bound=BaseModel)


def _check_address(text: str) -> str:
    parse_address(text)
    return text


class PermissionsConfig(BaseModel):
    """Options of who may run what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Whether people other than the owner see the endpoint.
    public: bool = False
    #: Who may run tasks besides the owner: names of the service's users ("*": all).
    users: list[Principal] | None = Field(default=None, max_length=1000)
    #: The same, as names of groups.
    groups: list[Principal] | None = Field(default=None, max_length=1000)
    #: Ids of the functions that may run here, with plain data as arguments; default: any function
    #: and any arguments.
    allowed_functions: list[UuidText] | None = None
    #: With these: variables that tasks may set, besides those of `endpoint.restrictions`.
    allowed_environment: list[str] = Field(default_factory=list)
    #: With these: programs that treat any argument as data, besides the known ones.
    plain_programs: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_options_of_functions(self) -> Self:
        for option, means in (
            ("allowed_environment", "tasks may set every variable"),
            ("plain_programs", "commands take every value"),
        ):
            if getattr(self, option) and self.allowed_functions is None:
                raise ValueError(
                    f"{option} is for endpoints with allowed_functions: without these, {means}"
                )
        return self


class EndpointConfig(PermissionsConfig):
    """The options of `config.yaml`; each has a default."""

    #: Name shown in lists; default: the endpoint's name.
    display_name: str | None = Field(default=None, min_length=1, max_length=256)
    #: Where and how tasks run; see the options of the engine.
    engine: FluxEngineConfig = Field(default_factory=FluxEngineConfig)
    #: Seconds between two status reports.
    heartbeat_period: float = Field(default=30, ge=1, le=86_400)
    #: The most unfinished tasks that are taken; further tasks wait in the queue.
    max_in_flight: PositiveInt = 1000
    #: The most tasks that the broker sends before they are acknowledged.
    prefetch: int = Field(default=512, ge=1, le=MAX_PREFETCH)
    #: `true` makes it a multi-user endpoint, with the options of `multi_user.config`.
    multi_user: Literal[False] = False
    #: Seconds that running tasks have when the endpoint stops.
    shutdown_grace: float = Field(default=5, ge=0)
    #: Seconds without an unfinished task after which the endpoint ends; infinity: never.
    stop_when_idle: Annotated[float, BeforeValidator(parse_duration), Field(gt=0)] = math.inf
    #: Seconds for which directories and output files named after tasks are kept after their last
    #: change; infinity: forever.
    keep_task_files: Annotated[float, BeforeValidator(parse_duration), Field(gt=0)] = 90 * 86_400.0
    #: Seconds for which ids of ended tasks are kept in the journal, to recognize a task that the
    #: broker delivers once more; infinity: as long as there are not too many.
    keep_task_ids: Annotated[float, BeforeValidator(parse_duration), Field(gt=0)] = KEEP_DONE
    #: Where Prometheus reads this endpoint's metrics, as HOST:PORT; default: nowhere.
    metrics: Annotated[str, AfterValidator(_check_address)] | None = None
    #: The least severe messages in the endpoint's log.
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    #: Whether the log has lines of text, or a JSON object in each line.
    log_format: Literal["text", "json"] = "text"

    @property
    def tasks_per_message(self) -> int:
        """The most tasks of one submission that one message may have."""
        return max(1, min(MAX_PARTS, self._tasks_ahead // _MESSAGES_AHEAD))

    @property
    def messages_ahead(self) -> int:
        """Number of messages to prefetch, each of which may have that many tasks."""
        return max(1, self._tasks_ahead // self.tasks_per_message)

    @property
    def _tasks_ahead(self) -> int:
        return min(self.prefetch, self.max_in_flight)


def declares_multi_user(text: str) -> bool:
    """Return whether a `config.yaml` is that of a multi-user endpoint."""
    try:
        content = _parse_yaml(text, "")
    except ConfigurationError:  # whoever reads it in earnest says what is wrong
        return False
    return isinstance(content, dict) and content.get("multi_user") is True


def load_config(path: Path) -> EndpointConfig:
    """Return the configuration in the file at `path`.

    Raises:
        ConfigurationError: the text names all errors in the file, not just the first.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"can't read {path}: {error}") from None
    return parse_config(text, source=str(path))


def parse_config(text: str, *, source: str) -> EndpointConfig:
    """Return the configuration in `text`; errors name `source` (see `load_config`)."""
    return parse_as(EndpointConfig, text, source=source)


def parse_as(kind: type[Config], text: str, *, source: str) -> Config:
    """Return the configuration of a kind in `text`; see `parse_config`."""
    content = _parse_yaml(text, source)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{source}: must be `key: value` lines, the whole is {_shown(content)}"
        )
    if content.get("engine", content) is None:  # all lines under `engine:` are commented out
        content = {**content, "engine": {}}
    try:
        # Strict: YAML has its own types; `public: "no"` is a mistake, not a boolean.
        return kind.model_validate(content, strict=True)
    except ValidationError as error:
        schema = kind.model_json_schema()
        problems = sorted({_problem(dict(detail), schema) for detail in error.errors()})
    if len(problems) == 1:
        raise ConfigurationError(f"{source}: {problems[0]}")
    lines = "".join(f"\n  - {problem}" for problem in problems)
    raise ConfigurationError(f"{source}: {len(problems)} problems:{lines}")


# libyaml's, if available: the other needs seconds for some hundred levels of nesting.
_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc,valid-type]  # chosen above
    """Rejects duplicate keys, of which plain YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown position"
        what = error.problem or error.context or "can't be parsed"
        raise ConfigurationError(f"{source}, {where}: not valid YAML: {what}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{source}: not valid YAML: {error}") from None


def _problem(detail: dict[str, Any], schema: dict[str, Any]) -> str:
    location: tuple[str | int, ...] = detail["loc"]
    key = ".".join(str(part) for part in location)
    given = detail["input"]
    if detail["type"] == "extra_forbidden":
        known = _keys(_lookup(schema, location[:-1], schema), schema)
        hint = suggestion(location[-1], sorted(known), "known here:")
        return f"{key}: unknown key; {hint}"
    if location == ("engine", "type") and given in OFFICIAL_ENGINES:
        return f"{key}: {given!r} given; this endpoint runs FluxEngine: set engine.type: FluxEngine"
    allowed = _described(_lookup(schema, location, schema), schema)
    if detail["type"] == "value_error":  # one of our validators, whose text is complete
        allowed = str(detail["ctx"]["error"])
        return f"{key}: {allowed}" if key else allowed
    return f"{key}: must be {allowed or detail['msg']}, not {_shown(given)}"


def _lookup(
    part: dict[str, Any], location: tuple[str | int, ...], schema: dict[str, Any]
) -> dict[str, Any]:
    """Return the schema of the value at `location`; `{}` if there is none."""
    while "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    if not location:
        return part
    if "anyOf" in part:
        options = (_lookup(option, location, schema) for option in part["anyOf"])
        return next((found for found in options if found), {})
    step = location[0]
    if isinstance(step, int):
        inner = part.get("items")
    else:
        inner = part.get("properties", {}).get(step, part.get("additionalProperties"))
    return _lookup(inner, location[1:], schema) if inner else {}


def _keys(part: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return the keys that a mapping may have."""
    options = [_lookup(option, (), schema) for option in part.get("anyOf", [part])]
    return [key for option in options for key in option.get("properties", {})]


_KINDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "object": "a block of `key: value` lines",
}


def _described(part: dict[str, Any], schema: dict[str, Any]) -> str:
    """Describe in words what `part` of the schema allows."""
    if "anyOf" in part:
        described = (_described(_lookup(option, (), schema), schema) for option in part["anyOf"])
        return " or ".join(text for text in described if text)
    if "const" in part:
        return str(part["const"])
    if "enum" in part:
        return "one of " + ", ".join(str(value) for value in part["enum"])
    kind = part.get("type", "")
    if kind == "array":
        return f"a list of {_described(_lookup(part, (0,), schema), schema)}"
    bounds = [
        f"{word} {part[name]:g}"
        for name, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "more than"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "less than"),
        )
        if name in part
    ]
    if "maxLength" in part:
        bounds.append(f"of 1 to {part['maxLength']} characters")
    return " ".join([_KINDS.get(kind, kind), *([", ".join(bounds)] if bounds else [])])


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


#: Written by `configure`; the commented lines show the defaults.
TEMPLATE = """\
# Configuration of the endpoint {name}. Lines that are commented out show the defaults.

# Name shown in lists.
display_name: {display_name}

# Who may see it: true means everybody who has a token of the service.
# public: false
# Who may run tasks besides the owner: users of the service ("*": all), and groups of them.
# All tasks run as the account that runs this endpoint: anyone who may run arbitrary tasks can read
# and change what this account can, including other users' files and tasks and this endpoint's
# token. Keep no credentials there. What is isolated and what is not: docs/security.md.
# users: [ada@example.org]
# groups: [chemistry]
# Ids of the functions that may run here; default: all. With this line, tasks are calls of these
# functions with plain data as arguments; values in commands are quoted, and a
# resource_specification has amounts, times and queues, but no options, attributes or other
# variables (see docs/security.md).
# allowed_functions:
#   - 00000000-0000-0000-0000-000000000000
# allowed_environment: []   # variables that tasks may set then, besides OMP_NUM_THREADS etc.
# plain_programs: []        # programs that treat any argument as data (docs/commands.md)

engine:
  type: FluxEngine
  # Where jobs run: "flux" (a Flux instance), "local" (processes of this machine),
  # or "auto": Flux where FLUX_URI is set.
  executor: auto
  # Workers start when tasks wait and end when they are idle (see docs/allocations.md).
  # max_workers: 64         # the most at once; default: one for each core of the instance
  # min_workers: 16         # that stay when idle; default: one for each core of a node
  # workers_per_node: 16    # the most that start together on a node; default: its cores
  # address: 10.1.2.3       # of this host for the nodes; default: that of its name
  # cores_per_worker: 4     # for functions that use threads; default: 1
  # gpus_per_worker: 1      # each has its own gpus, which limit the workers of a node
  # idle_timeout: 1m        # after which idle workers end, in seconds or with a unit
  # Working directory of tasks, relative to the endpoint's own directory.
  # working_dir: tasks_working_dir
  # run_in_sandbox: false   # true: a separate directory for each task
  # output_limit: 64K       # bytes of each stream of a task that go with its result; at most 1M
  # Before workers and jobs: variables, and shell code (docs/resources.md, The environment). If a
  # command in it fails, nothing is started.
  # environment:
  #   OMP_NUM_THREADS: 4
  # worker_init: |
  #   module load gcc
  # python: ~/venvs/chemistry/bin/python   # that runs functions; with flux-endpoint installed
  # Let Flux's job shell prepare command tasks (see docs/flux-plugins.md): always, never,
  # or auto: where the site installed the plugin.
  # shell_plugin: auto
  # Whether short MPI commands that come one after the other share an allocation, instead of
  # being a job each (see docs/jobs.md).
  # hold_allocations: true
  # How often a task is retried whose worker, job or node was lost.
  # max_retries_on_system_failure: 0
  # Run tasks in allocations that the endpoint requests from Flux as tasks come; default:
  # in the Flux instance that the endpoint runs in (see docs/allocations.md).
  # blocks:
  #   nodes_per_block: 1
  #   min_blocks: 0
  #   max_blocks: 1
  #   walltime: 1h
  #   grace: 1m             # a block's tasks get SIGTERM this long before its end
  #   idle_timeout: 2m
  #   queue: batch          # default: the instance's
  #   bank: science

# heartbeat_period: 30      # seconds
# max_in_flight: 1000       # the most unfinished tasks here; further ones wait in the queue
# prefetch: 512             # the most tasks that the broker sends before acknowledgement
# shutdown_grace: 5         # seconds that running tasks have when the endpoint stops
# stop_when_idle: infinity  # time without a task after which the endpoint ends
# keep_task_files: 90d      # directories and output files named after tasks; infinity: forever
# keep_task_ids: 7d         # ids of ended tasks, to recognize those that come once more
# metrics: 127.0.0.1:9101   # where Prometheus may read metrics without a token; default: nowhere
# log_level: INFO           # DEBUG, INFO, WARNING or ERROR
# log_format: text          # or json
"""


def initial_config(name: str, display_name: str | None = None) -> str:
    """Return the text of a new endpoint's `config.yaml`."""
    shown = json.dumps(display_name or name, ensure_ascii=False)  # JSON text is YAML text
    return TEMPLATE.format(name=name, display_name=shown)
