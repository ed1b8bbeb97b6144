"""The options under `engine:` in an endpoint's `config.yaml`."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from flux_endpoint.protocol.duration import format_duration, parse_duration
from flux_endpoint.protocol.limits import DEFAULT_OUTPUT, MAX_OUTPUT
from flux_endpoint.protocol.resources import MAX_SNIPPET
from flux_endpoint.protocol.size import parse_size


def _finite_duration(value: object) -> float:
    seconds = parse_duration(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"must be more than 0 and less than infinity, not {value!r}")
    return seconds


def _variable(value: object) -> object:
    """Return a number as text, since YAML has numbers and variables are text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


#: A variable's value; `None`: the variable is unset.
Variable = Annotated[str | None, BeforeValidator(_variable)]


def _output_limit(value: object) -> int:
    size = parse_size(value)
    if not 0 <= size <= MAX_OUTPUT:
        raise ValueError(f"must be from 0 to {MAX_OUTPUT >> 20}M, not {value!r}")
    return int(size)


#: A number of bytes.
OutputLimit = Annotated[int, BeforeValidator(_output_limit)]

#: A duration in seconds: a number, or Flux Standard Duration.
Duration = Annotated[float, BeforeValidator(_finite_duration)]


class BlocksConfig(BaseModel):
    """Options of blocks, the allocations that an endpoint requests and runs its tasks in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Number of (whole) nodes of each block.
    nodes_per_block: PositiveInt = 1
    #: Number of blocks that are kept when idle.
    min_blocks: int = Field(default=0, ge=0)
    #: The most blocks at once, including those that wait for nodes.
    max_blocks: PositiveInt = 1
    #: Time limit of a block.
    walltime: Duration = 3600.0
    #: A block's running tasks get SIGTERM this long before its end.
    grace: Duration = 60.0
    #: An idle block is ended after this time.
    idle_timeout: Duration = 120.0
    #: Queue that blocks are submitted to; default: the instance's.
    queue: str | None = Field(default=None, min_length=1)
    #: Bank that is charged; default: the instance's.
    bank: str | None = Field(default=None, min_length=1)

    @property
    def longest_task(self) -> float:
        """The longest walltime, in seconds, that a task may have."""
        return self.walltime - self.grace

    @model_validator(mode="after")
    def _consistent(self) -> BlocksConfig:
        if self.grace >= self.walltime:
            raise ValueError(
                f"grace ({format_duration(self.grace)}) must be less than walltime "
                f"({format_duration(self.walltime)})"
            )
        if self.min_blocks > self.max_blocks:
            raise ValueError(
                f"min_blocks ({self.min_blocks}) must not be more than max_blocks "
                f"({self.max_blocks})"
            )
        return self


class WorkersConfig(BaseModel):
    """Options of the resident workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: The most resident workers at once; default: `workers_per_node` for each node of the instance.
    max_workers: PositiveInt | None = None
    #: Workers that stay when idle; default: `workers_per_node`.
    min_workers: int | None = Field(default=None, ge=0)
    #: The same as `max_workers` in whole nodes, each of `workers_per_node` workers.
    max_nodes: PositiveInt | None = None
    #: The same as `min_workers` in whole nodes.
    min_nodes: int | None = Field(default=None, ge=0)
    #: The most workers that start together on a node; default: limited by the cores (one each), or
    #: by the gpus.
    workers_per_node: PositiveInt | None = None
    #: Cores of each worker; more than one limits the number of workers of a node accordingly.
    cores_per_worker: PositiveInt = 1
    #: Gpus of each worker, for its exclusive use; they limit the number of workers of a node.
    gpus_per_worker: int = Field(default=0, ge=0)
    #: Idle workers end after this time and release their cores; infinity: never.
    idle_timeout: Annotated[float, BeforeValidator(parse_duration), Field(gt=0)] = 60.0

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        for bound in ("max", "min"):
            given = {unit: getattr(self, f"{bound}_{unit}") for unit in ("workers", "nodes")}
            if None not in given.values():
                raise ValueError(
                    f"{bound}_workers and {bound}_nodes set the same limit in two units "
                    f"({given['workers']} workers, {given['nodes']} nodes): leave one of them out"
                )
        for unit in ("workers", "nodes"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{unit} ({least}) is more than max_{unit} ({most})")
        return self


class EnvironmentConfig(BaseModel):
    """Options of the environment that workers and jobs run in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Shell code that runs on each node before its workers, and before the program of each task
    #: that is a job, for example to load modules. If a command in it fails, nothing is started.
    worker_init: str = Field(default="", max_length=MAX_SNIPPET)
    #: Variables of workers and jobs, in addition to the endpoint's; null unsets one.
    environment: dict[str, Variable] = Field(default_factory=dict)
    #: Python that runs functions, a path or a name on `PATH`; default: the one of the endpoint.
    #: It needs this package, of the same version.
    python: str | None = Field(default=None, min_length=1)

    @field_validator("environment")
    @classmethod
    def _check_names(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        for name, text in value.items():
            if not name or "=" in name or "\0" in name + (text or ""):
                raise ValueError(f"{name!r} can't be a variable, or its value has a NUL character")
        return value

    @field_validator("worker_init", "python")
    @classmethod
    def _check_text(cls, value: str | None) -> str | None:
        if value is not None and "\0" in value:
            raise ValueError("must not have a NUL character in it")
        return value


class FluxEngineConfig(WorkersConfig, EnvironmentConfig):
    """Options of `FluxEngine`; the defaults suit laptops and allocations alike."""

    #: The only engine there is: it runs functions, commands and MPI applications.
    type: Literal["FluxEngine"] = "FluxEngine"
    #: Where jobs run: "flux", "local", or "auto": Flux if `FLUX_URI` is set, else local processes.
    executor: Literal["auto", "flux", "local"] = "auto"
    #: Working directory of tasks; a relative path starts at the endpoint's directory.
    working_dir: str = "tasks_working_dir"
    #: Give every task a directory of its own below `working_dir`.
    run_in_sandbox: bool = False
    #: The most bytes of each output stream of a Python function that its result brings along,
    #: those at the end: a number, or text such as "64K"; at most 1M.
    output_limit: OutputLimit = DEFAULT_OUTPUT
    #: Whether Flux's job shell prepares command tasks, by the plugin `flux-endpoint.lua`: "auto"
    #: (where the shell has it installed), "always" (else from this package, as the nodes see it),
    #: "never".
    shell_plugin: Literal["auto", "always", "never"] = "auto"
    #: Whether short MPI tasks of one shape that come together share an allocation of Flux.
    hold_allocations: bool = True
    #: How often a task is retried that lost its worker or node through no fault of its own.
    max_retries_on_system_failure: int = Field(default=0, ge=0)
    #: Options of blocks to run tasks in; default: none, tasks run in the instance itself.
    blocks: BlocksConfig | None = None
    #: Strategies that tasks may be serialized with; default: all.
    allowed_serializers: list[str] | None = None
    #: Address of this host for connections from the nodes; default: determined automatically.
    address: str | None = None
    #: Virtual nodes of the embedded executor (ignored on Flux).
    local_nodes: PositiveInt = 1
    #: Cores of each virtual node; default: this machine's.
    local_cores_per_node: PositiveInt | None = None
    #: Gpus of each virtual node.
    local_gpus_per_node: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _blocks_are_of_flux(self) -> FluxEngineConfig:
        if self.blocks is not None and self.executor == "local":
            raise ValueError("blocks are allocations of Flux: leave `executor: local` out")
        return self
