"""The environment in which jobs start."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping

from flux_endpoint.variables import holds_credentials

log = logging.getLogger(__name__)

#: Set by Flux per job; our jobs must not inherit the values of the endpoint's own job.
_OF_ANOTHER_JOB = (
    "FLUX_JOB_",
    "FLUX_TASK_",
    "FLUX_KVS_NAMESPACE",
    "PMI_",
    "PMIX_",
    "PALS_",
    "HYDRA_",
)
#: For our own process only; see `processes.helper`.
_OF_THIS_PROCESS = ("FLUX_ENDPOINT_NOTICE",)
#: Variables that a warning was already logged for.
_reported: set[str] = set()


def job_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return `base` as UTF-8 text, without secrets and without variables of other jobs.

    A jobspec is JSON, so it can't have a variable that is not UTF-8: that one is left out, and its
    name is logged once. Values are the same bytes as in `base`, whatever the locale.

    Args:
        base: an environment; default: this process's.
    """
    source = os.environ if base is None else base
    environment = {}
    for name, value in source.items():
        if not _passes(name):
            continue
        if name.isascii() and value.isascii():
            environment[name] = value
            continue
        try:
            environment[os.fsencode(name).decode()] = os.fsencode(value).decode()
        except UnicodeError:
            _report(name)
    return environment


@functools.lru_cache(maxsize=4096)
def _passes(name: str) -> bool:
    """Return whether jobs may have a variable."""
    of_others = name.startswith((*_OF_ANOTHER_JOB, *_OF_THIS_PROCESS))
    return not (of_others or holds_credentials(name))


def _report(name: str) -> None:
    if name not in _reported:
        _reported.add(name)
        # Never log the value: it may be secret.
        shown = name if name.isprintable() else ascii(name)
        log.warning("jobs start without the variable %s: it is not UTF-8", shown)
