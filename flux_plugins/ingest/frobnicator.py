"""Defaults that a site sets for jobs that come from endpoints.

A plugin for Flux's job frobnicator; `[flux-endpoint]` in Flux's configuration has the defaults.
"""

import os

from flux.importer import import_path
from flux.job.frobnicator import FrobnicatorPlugin

policy = import_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "policy.py"))


class Frobnicator(FrobnicatorPlugin):
    """Completes endpoints' jobs; leaves all other jobs as they are."""

    def configure(self, args, config):
        """Read the site's rules; wrong ones concern endpoints' jobs alone."""
        self._policy = self._problem = None
        try:
            self._policy = policy.Policy(config)
        except ValueError as error:
            self._problem = policy.WRONG % error

    def frob(self, jobspec, user, urgency, flags):
        """Complete a job in place."""
        if policy.mark_of(jobspec.jobspec) is None:
            return
        if self._policy is None:
            raise ValueError(self._problem)
        self._policy.complete(jobspec.jobspec, user)
