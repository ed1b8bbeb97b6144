"""An endpoint's `config.yaml`: what may stand in it, and what is said when something else does."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from flux_endpoint.amqp.bundle import MAX_PARTS
from flux_endpoint.engine.config import FluxEngineConfig
from flux_endpoint.errors import ConfigurationError, suggestion
from flux_endpoint.protocol.duration import parse_duration
from flux_endpoint.protocol.rest import Principal, UuidText

#: Engines of the official endpoint, which people bring along in their configuration.
OFFICIAL_ENGINES = frozenset(
    {
        "GlobusComputeEngine",
        "GlobusMPIEngine",
        "HighThroughputEngine",
        "ProcessPoolEngine",
        "ThreadPoolEngine",
    }
)

#: So many messages at least are on their way while others are dealt with, if tasks are many.
_MESSAGES_AHEAD = 16
#: The protocol's limit of `prefetch`.
MAX_PREFETCH = 65_535


class EndpointConfig(BaseModel):
    """What a site may set in `config.yaml`; every key has a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: What people see in lists; default: the endpoint's name.
    display_name: str | None = Field(default=None, min_length=1, max_length=256)
    engine: FluxEngineConfig = Field(default_factory=FluxEngineConfig)
    #: Seconds between two status reports.
    heartbeat_period: float = Field(default=30, ge=1, le=86_400)
    #: Tasks taken and not yet answered above which the others wait in the queue.
    max_in_flight: PositiveInt = 1000
    #: Tasks that the broker sends ahead of their acknowledgement.
    prefetch: int = Field(default=512, ge=1, le=MAX_PREFETCH)
    #: Ids of the functions that may run here, with data as arguments; default: all, with anything.
    allowed_functions: list[UuidText] | None = None
    #: With these: variables that tasks may set, besides those of `endpoint.restrictions`.
    allowed_environment: list[str] = Field(default_factory=list)
    #: With these: programs of commands that take any text for data, besides those known for it.
    plain_programs: list[str] = Field(default_factory=list)
    #: Whether other people than the owner see the endpoint.
    public: bool = False
    #: Who may run tasks besides the owner: names of the service's users ("*": all) and groups.
    users: list[Principal] | None = Field(default=None, max_length=1000)
    groups: list[Principal] | None = Field(default=None, max_length=1000)
    #: Seconds that running tasks have left when the endpoint is told to stop.
    shutdown_grace: float = Field(default=5, ge=0)
    #: Seconds after their last change for which directories and output files of tasks are kept that
    #: are called after the task; infinity: for ever.
    keep_task_files: Annotated[float, BeforeValidator(parse_duration), Field(gt=0)] = 90 * 86_400.0
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    @property
    def tasks_per_message(self) -> int:
        """Tasks of one submission that may come in one message."""
        return max(1, min(MAX_PARTS, self._tasks_ahead // _MESSAGES_AHEAD))

    @property
    def messages_ahead(self) -> int:
        """Messages that the broker sends ahead, where each may have that many tasks."""
        return max(1, self._tasks_ahead // self.tasks_per_message)

    @property
    def _tasks_ahead(self) -> int:
        return min(self.prefetch, self.max_in_flight)

    @model_validator(mode="after")
    def _what_goes_with_functions(self) -> EndpointConfig:
        for option, means in (
            ("allowed_environment", "tasks may set every variable"),
            ("plain_programs", "commands take every value"),
        ):
            if getattr(self, option) and self.allowed_functions is None:
                raise ValueError(
                    f"{option} is for endpoints with allowed_functions: without these, {means}"
                )
        return self


def load_config(path: Path) -> EndpointConfig:
    """Return the configuration in the file at `path`.

    Raises:
        ConfigurationError: names everything that is wrong with it, not just the first.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"can't read {path}: {error}") from None
    return parse_config(text, source=str(path))


def parse_config(text: str, *, source: str) -> EndpointConfig:
    """Return the configuration in `text`; errors name `source` (see `load_config`)."""
    content = _parse_yaml(text, source)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{source}: must be `key: value` lines, the whole is {_shown(content)}"
        )
    if content.get("engine", content) is None:  # `engine:` with all its lines commented out
        content = {**content, "engine": {}}
    try:
        # Strict: YAML has types of its own, `public: "no"` is a mistake and not a boolean.
        return EndpointConfig.model_validate(content, strict=True)
    except ValidationError as error:
        schema = EndpointConfig.model_json_schema()
        problems = sorted({_problem(dict(detail), schema) for detail in error.errors()})
    if len(problems) == 1:
        raise ConfigurationError(f"{source}: {problems[0]}")
    lines = "".join(f"\n  - {problem}" for problem in problems)
    raise ConfigurationError(f"{source}: {len(problems)} problems:{lines}")


# libyaml's, where there is one: the other needs seconds for some hundred levels of nesting.
_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc,valid-type]  # chosen just now
    """Refuses a key that is given twice, where plain YAML takes the last without a word."""

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
    if detail["type"] == "value_error":  # a check of our own, which says it best itself
        allowed = str(detail["ctx"]["error"])
        return f"{key}: {allowed}" if key else allowed
    return f"{key}: must be {allowed or detail['msg']}, not {_shown(given)}"


def _lookup(
    part: dict[str, Any], location: tuple[str | int, ...], schema: dict[str, Any]
) -> dict[str, Any]:
    """Return the schema of the value at `location`, `{}` where there is none."""
    while "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    if not location:
        return part
    if "anyOf" in part:
        options = (_lookup(option, location, schema) for option in part["anyOf"])
        return next((found for found in options if found), {})
    step = location[0]
    inner = part.get("items") if isinstance(step, int) else part.get("properties", {}).get(step)
    return _lookup(inner, location[1:], schema) if inner else {}


def _keys(part: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return the keys that a block of lines may have."""
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
    """Say in words what `part` of the schema allows."""
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


#: What `configure` writes; the commented lines show the defaults.
TEMPLATE = """\
# Configuration of the endpoint {name}. Lines that are commented out show the defaults.

# What people see in lists.
display_name: {display_name}

# Who may see it: true is everybody who has a token of the service.
# public: false
# Who may run tasks besides the owner: users of the service ("*": all), and groups of them.
# All tasks run as the account that runs this endpoint: whoever may run tasks of their own choice
# can read and change what this account can, the others' files and tasks and this endpoint's token
# included. Keep no credentials there. What is kept apart, and what is not: docs/security.md.
# users: [ada@example.org]
# groups: [chemistry]
# Ids of the functions that may run here; default: all. With this line a task is one of them with
# plain data as arguments; values in commands are quoted, and a resource_specification has amounts,
# times and queues, but no options, attributes or other variables (see docs/security.md).
# allowed_functions:
#   - 00000000-0000-0000-0000-000000000000
# allowed_environment: []   # variables that tasks may set then, beside OMP_NUM_THREADS and its like
# plain_programs: []        # programs of commands that take any text for data (docs/commands.md)

engine:
  type: FluxEngine
  # Where jobs run: "flux" (a Flux instance), "local" (processes of this machine),
  # or "auto": Flux where FLUX_URI is set.
  executor: auto
  # Resident workers come as tasks wait and go when they are idle (see docs/allocations.md).
  # max_workers: 64         # most at once; default: one for each core of the instance
  # min_workers: 16         # those that stay; default: one for each core of a node
  # workers_per_node: 16    # most that are started together on a node; default: its cores
  # address: 10.1.2.3       # at which the nodes reach this host; default: that of its name
  # cores_per_worker: 4     # for functions with threads of their own; default: 1
  # gpus_per_worker: 1      # each has gpus of its own, and a node as many workers as that allows
  # idle_timeout: 1m        # after how long idle ones end, in seconds or with a unit
  # Directory in which tasks run, seen from the endpoint's own directory.
  # working_dir: tasks_working_dir
  # run_in_sandbox: false   # true: a directory of its own for each task
  # Have Flux's job shell prepare command tasks (see docs/flux-plugins.md): always, never,
  # or auto: where the site installed the plugin.
  # shell_plugin: auto
  # How often a task is tried again whose worker, job or node was lost.
  # max_retries_on_system_failure: 0
  # Run tasks in allocations of the endpoint's own, which it asks Flux for as tasks come; default:
  # in the Flux instance that it runs in (see docs/allocations.md).
  # blocks:
  #   nodes_per_block: 1
  #   min_blocks: 0
  #   max_blocks: 1
  #   walltime: 1h
  #   grace: 1m             # how long before a block's end its tasks are told to end
  #   idle_timeout: 2m
  #   queue: batch          # default: the instance's
  #   bank: science

# heartbeat_period: 30      # seconds
# max_in_flight: 1000       # tasks taken and not yet answered; the others wait in the queue
# prefetch: 512             # tasks that the broker sends ahead of their acknowledgement
# shutdown_grace: 5         # seconds that running tasks have left at a stop
# keep_task_files: 90d      # directories and output files called after a task; infinity: for ever
# log_level: INFO           # DEBUG, INFO, WARNING or ERROR
# log_format: text          # or json
"""


def initial_config(name: str, display_name: str | None = None) -> str:
    """Return the text of a new endpoint's `config.yaml`."""
    shown = json.dumps(display_name or name, ensure_ascii=False)  # JSON text is YAML text
    return TEMPLATE.format(name=name, display_name=shown)
