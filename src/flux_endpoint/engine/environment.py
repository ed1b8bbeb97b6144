"""The environment that jobs start with."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from flux_endpoint.variables import holds_credentials

log = logging.getLogger(__name__)

#: Set by Flux for one job; a job of ours must not see those of the job that the endpoint runs in.
_OF_ANOTHER_JOB = ("FLUX_JOB_", "FLUX_TASK_", "FLUX_KVS_NAMESPACE", "PMI_", "PMIX_", "HYDRA_")
#: Of our own process alone; see `processes.helper`.
_OF_THIS_PROCESS = ("FLUX_ENDPOINT_NOTICE",)
#: Variables whose absence has been logged.
_reported: set[str] = set()


def job_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return `base` without what belongs to other jobs, without secrets, and as UTF-8.

    A jobspec is JSON, and can't have a variable that is not UTF-8: it is left out, and the log says
    so once, with its name. Whatever the locale is, a job gets the bytes that `base` has.

    Args:
        base: an environment; default: this process's.
    """
    source = os.environ if base is None else base
    environment = {}
    for name, value in source.items():
        if name.startswith((*_OF_ANOTHER_JOB, *_OF_THIS_PROCESS)) or holds_credentials(name):
            continue
        try:
            environment[os.fsencode(name).decode()] = os.fsencode(value).decode()
        except UnicodeError:
            _report(name)
    return environment


def _report(name: str) -> None:
    if name not in _reported:
        _reported.add(name)
        # Never the value: it may be secret.
        shown = name if name.isprintable() else ascii(name)
        log.warning("jobs start without the variable %s: it is not UTF-8", shown)
