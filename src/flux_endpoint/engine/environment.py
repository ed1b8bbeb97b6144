"""The environment that jobs start with."""

from __future__ import annotations

import os
from collections.abc import Mapping

#: Set by Flux for one job; a job of ours must not see those of the job that the endpoint runs in.
_OF_ANOTHER_JOB = ("FLUX_JOB_", "FLUX_TASK_", "FLUX_KVS_NAMESPACE", "PMI_", "PMIX_", "HYDRA_")
#: Never handed to anything that runs user code.
_SECRETS = ("FLUX_ENDPOINT_TOKEN", "FLUX_ENDPOINT_SERVICE_")


def job_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return `base` without what belongs to other jobs, and without secrets.

    Args:
        base: an environment; default: this process's.
    """
    source = os.environ if base is None else base
    return {
        name: value
        for name, value in source.items()
        if not name.startswith(_OF_ANOTHER_JOB) and not name.startswith(_SECRETS)
    }
