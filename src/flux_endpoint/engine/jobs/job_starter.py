"""How a task's job begins: it is submitted, or found again after a restart."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from flux_endpoint import logs
from flux_endpoint.engine.backend import Backend
from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.jobs.exchange import write_task
from flux_endpoint.engine.jobs.job import Job, prepare_output
from flux_endpoint.engine.jobs.plan import FollowPlan, JobPlan, Planner, RanksPlan
from flux_endpoint.engine.jobs.records import JobRecords
from flux_endpoint.engine.jobs.states import JobState
from flux_endpoint.engine.jobspec import build_jobspec
from flux_endpoint.protocol.jobid import format_jobid

log = logging.getLogger(__name__)


class JobStarter:
    """Submits, finds or follows the jobs of tasks. Used by the runner's thread only.

    Args:
        backend: where jobs run.
        planner: decides which job a task becomes.
        records: the jobs recorded on disk.
    """

    def __init__(self, backend: Backend, planner: Planner, records: JobRecords) -> None:
        self._backend = backend
        self._planner = planner
        self._records = records
        self.plan = planner.plan

    def find(self, task: EngineTask, plan: JobPlan) -> Job | None:
        """Return the job that was submitted for a task before a restart, or `None`."""
        found = self._records.find(task.task_id)
        if found is None:
            return None
        logs.event(
            log, logging.INFO, "attaching to job", task=task.task_id, job=format_jobid(found.jobid)
        )
        future = self._backend.executor.attach(found.jobid)
        return Job(task, plan, future, found.starts, JobState.FOUND, found.jobid)

    def submit(self, task: EngineTask, plan: JobPlan) -> Job:
        """Submit a task's job, or follow somebody else's job."""
        if isinstance(plan, FollowPlan):
            return Job(task, plan, self._backend.executor.attach(plan.jobid), (0, 0))
        Path(plan.request.cwd).mkdir(parents=True, exist_ok=True)
        if isinstance(plan, RanksPlan):
            shutil.rmtree(plan.directory, ignore_errors=True)  # from an earlier attempt
            write_task(
                plan.directory,
                task.task_id,
                task.buffer,
                task.result_serializers,
                self._planner.tasks,
            )
        starts = prepare_output(plan)
        mark = self._records.begin(task.task_id, starts, plan.request.mark or {})
        jobspec = build_jobspec(replace(plan.request, mark=mark))
        future = self._backend.submit(jobspec, urgency=plan.request.resources.urgency)
        return Job(task, plan, future, starts)
