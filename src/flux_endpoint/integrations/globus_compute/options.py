"""The options next to `type: FluxEngine` in a user endpoint's configuration."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError, model_validator

from flux_endpoint.engine.config import FluxEngineConfig, OutputLimit
from flux_endpoint.errors import suggestion

#: Options of the official engines that do not exist here, with replacements.
_ELSEWHERE = {
    "provider": "there are no blocks to provide: the engine uses the Flux instance that the "
    "endpoint runs in (FLUX_URI)",
    "strategy": "workers come and go by max_workers, min_workers and idle_timeout",
    "job_status_kwargs": "workers come and go by max_workers, min_workers and idle_timeout",
    "max_workers_per_node": "set workers_per_node",
    "available_accelerators": "set gpus_per_worker: 1",
    "encrypted": "traffic between hosts is always encrypted",
    "mpi_launcher": "ranks are started by Flux",
    "container_type": "containers are not supported",
    "container_uri": "containers are not supported",
}


class PluginOptions(FluxEngineConfig):
    """The options of our own endpoint's engine, and some that its agent has there."""

    #: What functions print goes to the log alone: the official client does not know more.
    output_limit: OutputLimit = 0
    #: Its name in logs.
    label: str = "FluxEngine"
    #: Seconds that running tasks have when the endpoint stops.
    shutdown_grace: float = Field(default=5.0, ge=0)

    @model_validator(mode="after")
    def _no_blocks(self) -> PluginOptions:
        if self.blocks is not None:
            raise ValueError(
                "blocks is an option of Flux Endpoint's own endpoints only: this engine uses the "
                "Flux instance that the endpoint runs in (FLUX_URI)"
            )
        return self


def read_options(given: dict[str, Any]) -> PluginOptions:
    """Return `given` as options.

    Raises:
        ValueError: an option is invalid; the text names it, and says what is valid.
    """
    try:
        return PluginOptions(**given)
    except ValidationError as error:
        problems = [_problem(dict(detail)) for detail in error.errors(include_url=False)]
    raise ValueError("FluxEngine: " + "; ".join(problems)) from None


def _problem(detail: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    if not name:  # an error of several options, whose text names them
        return str(detail["ctx"]["error"])
    if detail["type"] != "extra_forbidden":
        return f"{name}: {detail['msg']}, not {detail['input']!r}"
    if name in _ELSEWHERE:
        return f"{name} is not a FluxEngine option: {_ELSEWHERE[name]}"
    known = sorted(PluginOptions.model_fields.keys() - {"type", "blocks"})
    return f"{name} is not a FluxEngine option; {suggestion(name, known, 'there are')}"
