"""Cores and gpus of workers: the number of workers on a node, and the gpus of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flux_endpoint.errors import EngineError

if TYPE_CHECKING:  # a manager does not need these
    from flux_endpoint.engine.backend import Backend
    from flux_endpoint.engine.config import FluxEngineConfig

#: Set by Flux's job shell, and by the embedded executor, for a job's tasks. CUDA reads it, and so
#: does AMD's HIP.
VARIABLE = "CUDA_VISIBLE_DEVICES"


def workers_of_node(backend: Backend, config: FluxEngineConfig) -> int:
    """Return how many workers fit on a node, by its gpus if each worker has some, else its cores.

    Workers of one core each may exceed that number; they share cores then.

    Raises:
        EngineError: the nodes lack the cores or gpus that the configuration requires.
    """
    each, asked = config.gpus_per_worker, config.workers_per_node
    by_cores = _by_cores(backend.resources.cores_per_node, config)
    if not each:
        return asked or by_cores
    counts = [node.gpus for node in backend.nodes().values()]
    least, most = min(counts, default=0), max(counts, default=0)
    if least != most:
        kinds = ", ".join(f"{counts.count(n)} with {n}" for n in sorted(set(counts), reverse=True))
        raise EngineError(
            "engine.gpus_per_worker: the nodes differ in the number of their gpus "
            f"(nodes: {kinds}), and workers with gpus need nodes that are alike; run the endpoint "
            "in an allocation of such nodes, or leave the option out"
        )
    if most < each:
        raise EngineError(
            f"engine.gpus_per_worker: {each}, but the nodes have {_gpus(most)} each"
            + ("" if most else "; leave the option out")
        )
    if asked is not None and asked * each > most:
        raise EngineError(
            f"engine.workers_per_node: {asked} workers with {_gpus(each)} each "
            f"(engine.gpus_per_worker) need {asked * each}, but the nodes have {_gpus(most)} each"
        )
    by_gpus = most // each
    return asked or (by_gpus if config.cores_per_worker == 1 else min(by_gpus, by_cores))


def _by_cores(cores: int, config: FluxEngineConfig) -> int:
    """Return how many workers with exclusive cores fit on a node with `cores` cores."""
    each, asked = config.cores_per_worker, config.workers_per_node
    if each > cores:
        raise EngineError(
            f"engine.cores_per_worker: {each}, but the nodes have {_cores(cores)} each"
        )
    if each > 1 and asked is not None and asked * each > cores:
        raise EngineError(
            f"engine.workers_per_node: {asked} workers with {_cores(each)} each "
            f"(engine.cores_per_worker) need {asked * each}, but the nodes have {_cores(cores)} "
            "each"
        )
    return cores // each


def shares(environment: Mapping[str, str], workers: int, each: int) -> list[dict[str, str]]:
    """Return the environment variables that each of a manager's workers gets.

    Args:
        environment: the manager's.
        workers: number of workers.
        each: gpus of each worker.

    Raises:
        EngineError: the manager has fewer visible gpus than its workers need.
    """
    if not each:
        return [{} for _ in range(workers)]
    text = environment.get(VARIABLE, "")
    ids = [part for part in text.split(",") if part and part != "-1"]
    if len(ids) != workers * each:
        raise EngineError(
            f"{VARIABLE} is {text!r} here, and {workers} workers with {_gpus(each)} each need "
            f"{workers * each}: Flux's job shell sets it, unless its option gpu-affinity is off"
        )
    return [{VARIABLE: ",".join(ids[first : first + each])} for first in range(0, len(ids), each)]


def _cores(count: int) -> str:
    return f"{count} core{'' if count == 1 else 's'}"


def _gpus(count: int) -> str:
    return f"{count or 'no'} gpu{'' if count == 1 else 's'}"
