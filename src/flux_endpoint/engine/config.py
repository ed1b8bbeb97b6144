"""What a site may set under `engine:` in an endpoint's `config.yaml`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class FluxEngineConfig(BaseModel):
    """Options of `FluxEngine`; every default fits a laptop and an allocation alike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["FluxEngine"] = "FluxEngine"
    #: Where jobs run: a Flux instance, local processes, or Flux if `FLUX_URI` is set.
    executor: Literal["auto", "flux", "local"] = "auto"
    #: Most nodes that resident workers may hold at once; default: all that the instance has.
    max_nodes: PositiveInt | None = None
    #: Nodes that keep their workers when there is nothing to do.
    min_nodes: int = Field(default=1, ge=0)
    #: Workers (and cores) of one manager; default: the cores of a node.
    workers_per_node: PositiveInt | None = None
    #: Seconds after which the workers of an idle node end and give their cores back.
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
