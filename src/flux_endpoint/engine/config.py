"""What a site may set under `engine:` in an endpoint's `config.yaml`."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from flux_endpoint.protocol.duration import format_duration, parse_duration


def _finite_duration(value: object) -> float:
    seconds = parse_duration(value)
    if not 0 < seconds < math.inf:
        raise ValueError(f"must be more than 0 and less than infinity, not {value!r}")
    return seconds


#: Seconds, given as such or in Flux Standard Duration.
Duration = Annotated[float, BeforeValidator(_finite_duration)]


class BlocksConfig(BaseModel):
    """Allocations that an endpoint asks the Flux instance for, and runs its tasks in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Whole nodes of each block.
    nodes_per_block: PositiveInt = 1
    #: Blocks that are kept when there is nothing to do.
    min_blocks: int = Field(default=0, ge=0)
    #: Most blocks at once, those that wait for their nodes included.
    max_blocks: PositiveInt = 1
    #: How long a block lasts.
    walltime: Duration = 3600.0
    #: How long before its end a block's running tasks are told to end (SIGTERM).
    grace: Duration = 60.0
    #: How long a block has nothing to do before it is ended.
    idle_timeout: Duration = 120.0
    #: Queue that blocks are submitted to, and bank that is charged; default: the instance's.
    queue: str | None = Field(default=None, min_length=1)
    bank: str | None = Field(default=None, min_length=1)

    @property
    def longest_task(self) -> float:
        """Seconds of the longest walltime that a task may have."""
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


class FluxEngineConfig(BaseModel):
    """Options of `FluxEngine`; every default fits a laptop and an allocation alike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["FluxEngine"] = "FluxEngine"
    #: Where jobs run: a Flux instance, local processes, or Flux if `FLUX_URI` is set.
    executor: Literal["auto", "flux", "local"] = "auto"
    #: Most resident workers at once; default: `workers_per_node` for each node of the instance.
    max_workers: PositiveInt | None = None
    #: Workers that stay when there is nothing to do; default: `workers_per_node`.
    min_workers: int | None = Field(default=None, ge=0)
    #: The same two in whole nodes, each of `workers_per_node` workers.
    max_nodes: PositiveInt | None = None
    min_nodes: int | None = Field(default=None, ge=0)
    #: Most workers that are started together on a node; default: as many as have a core each, or
    #: their gpus.
    workers_per_node: PositiveInt | None = None
    #: Cores that each worker's threads have; more than one: a node has as many workers as that
    #: allows.
    cores_per_worker: PositiveInt = 1
    #: Gpus that each worker has for itself; the workers of a node are as many as its gpus allow.
    gpus_per_worker: int = Field(default=0, ge=0)
    #: After how long idle workers end and give their cores back; infinity: never.
    idle_timeout: Annotated[float, BeforeValidator(parse_duration), Field(gt=0)] = 60.0
    #: Directory in which tasks run; relative paths start at the endpoint's directory.
    working_dir: str = "tasks_working_dir"
    #: Give every task a directory of its own below `working_dir`.
    run_in_sandbox: bool = False
    #: Have Flux's job shell prepare command tasks, by the plugin `flux-endpoint.lua`: "auto" where
    #: it is installed for the shell, "always" (else from this package, as nodes see it), "never".
    shell_plugin: Literal["auto", "always", "never"] = "auto"
    #: How often a task is tried again that lost its worker or node through no fault of its own.
    max_retries_on_system_failure: int = Field(default=0, ge=0)
    #: Allocations of its own to run tasks in; default: none, they run in the instance itself.
    blocks: BlocksConfig | None = None
    #: Strategies that tasks may be serialized with; default: all.
    allowed_serializers: list[str] | None = None
    #: Address at which this host is reached from the nodes; default: found out.
    address: str | None = None
    #: Virtual nodes, and cores and gpus of each, of the embedded executor (ignored on Flux).
    local_nodes: PositiveInt = 1
    local_cores_per_node: PositiveInt | None = None
    local_gpus_per_node: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_bounds(self) -> FluxEngineConfig:
        for bound in ("max", "min"):
            given = {unit: getattr(self, f"{bound}_{unit}") for unit in ("workers", "nodes")}
            if None not in given.values():
                raise ValueError(
                    f"{bound}_workers and {bound}_nodes say the same in two units "
                    f"({given['workers']} workers, {given['nodes']} nodes): leave one of them out"
                )
        for unit in ("workers", "nodes"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{unit} ({least}) is more than max_{unit} ({most})")
        return self

    @model_validator(mode="after")
    def _blocks_are_of_flux(self) -> FluxEngineConfig:
        if self.blocks is not None and self.executor == "local":
            raise ValueError("blocks are allocations of Flux: leave `executor: local` out")
        return self
