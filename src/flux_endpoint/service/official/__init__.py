"""All that the service does for endpoints of another make: those of the official package.

A *multi-user endpoint* registers, and starts *user endpoints* on command: one for each user and
each configuration. These hold the tasks that they take in memory only, and acknowledge them at
once. So each is given a window of tasks at a time, its runs are followed by their reports, and what
a vanished run had taken ends in a failure that says so. All of it happens on one thread, the
`dispatcher`'s. The rest of the service knows `OfficialEndpoints` alone (`make check` looks).
"""

from flux_endpoint.service.official.interface import OfficialEndpoints

__all__ = ["OfficialEndpoints"]
