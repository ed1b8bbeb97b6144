"""Support for official endpoints: those of the package `globus-compute-endpoint`.

A *multi-user endpoint* registers, and starts *user endpoints* on command: one for each user and
configuration. A user endpoint acknowledges tasks at once and keeps them in memory only. So the
service gives each endpoint a limited window of tasks, follows its runs by their status reports, and
fails the tasks that a lost run had taken. All of this happens on one thread, the `dispatcher`. The
rest of the service uses only `OfficialEndpoints` (`make check` enforces this).
"""

from flux_endpoint.service.official.interface import OfficialEndpoints

__all__ = ["OfficialEndpoints"]
