"""Limits that a site sets for jobs that come from endpoints.

A plugin for Flux's job validator; `[flux-endpoint]` in Flux's configuration has the limits.
"""

import errno
import os

from flux.importer import import_path
from flux.job.validator import ValidatorPlugin

policy = import_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), "policy.py"))


class Validator(ValidatorPlugin):
    """Rejects endpoints' jobs that are beyond the site's limits; lets all other jobs pass."""

    def configure(self, args):
        """Read the site's rules; wrong ones concern endpoints' jobs alone."""
        self._policy = self._problem = None
        try:
            self._policy = policy.Policy(self.flux.rpc("config.get").get())
        except ValueError as error:
            self._problem = policy.WRONG % error

    def validate(self, job):
        """Return an error number and a sentence for a job that is rejected."""
        if policy.mark_of(job.jobspec) is None:
            return None
        if self._policy is None:
            return errno.EINVAL, self._problem
        objections = self._policy.objections(job.jobspec, job.userid)
        return (errno.EPERM, policy.sentence(objections)) if objections else None
