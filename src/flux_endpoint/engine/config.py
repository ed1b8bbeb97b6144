"""What a site may set under `engine:` in an endpoint's `config.yaml`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


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
    #: Gpus that each worker has for itself; the workers of a node are as many as its gpus allow.
    gpus_per_worker: int = Field(default=0, ge=0)
    #: Seconds after which idle workers end and give their cores back.
    idle_timeout: float = Field(default=60.0, gt=0)
    #: Directory in which tasks run; relative paths start at the endpoint's directory.
    working_dir: str = "tasks_working_dir"
    #: Give every task a directory of its own below `working_dir`.
    run_in_sandbox: bool = False
    #: Have Flux's job shell prepare command tasks, by the plugin `flux-endpoint.lua`: "auto" where
    #: it is installed for the shell, "always" (else from this package, as nodes see it), "never".
    shell_plugin: Literal["auto", "always", "never"] = "auto"
    #: How often a task is tried again that lost its worker or node through no fault of its own.
    max_retries_on_system_failure: int = Field(default=0, ge=0)
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
