"""Starts the job of a task: submits it, or finds it again after a restart."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace

from flux_endpoint import logs
from flux_endpoint.engine.backend import Backend
from flux_endpoint.engine.base import EngineTask
from flux_endpoint.engine.held.allocations import HeldAllocations
from flux_endpoint.engine.held.policy import shape_of
from flux_endpoint.engine.jobs.exchange import write_task
from flux_endpoint.engine.jobs.job import Job, output_of, prepare_output, prepare_process
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
        held: allocations that short MPI tasks share.
    """

    def __init__(
        self,
        backend: Backend,
        planner: Planner,
        records: JobRecords,
        held: HeldAllocations,
    ) -> None:
        self._backend = backend
        self._planner = planner
        self.records = records
        self._held = held
        self.plan = planner.plan

    def find(self, task: EngineTask, plan: JobPlan) -> Job | None:
        """Return the job that was submitted for a task before a restart, or `None`."""
        found = self.records.find(task.task_id)
        if found is None:
            return None
        logs.event(
            log, logging.INFO, "attaching to job", task=task.task_id, job=format_jobid(found.jobid)
        )
        output = output_of(plan, found.starts, is_found=True)
        if found.is_held:
            directory = self.records.directory_of(task.task_id)
            held = self._held.recover(task.task_id, directory, found.starts, found.jobid)
            return Job(task, plan, held.future, output, held, JobState.FOUND, found.jobid)
        future = self._backend.executor.attach(found.jobid)
        return Job(task, plan, future, output, self._backend, JobState.FOUND, found.jobid)

    def submit(self, task: EngineTask, plan: JobPlan, *, alone: bool = False) -> Job:
        """Submit a task's job, or follow somebody else's job.

        Args:
            task: the task.
            plan: what it becomes.
            alone: whether it must get a job of its own.
        """
        if isinstance(plan, FollowPlan):
            future = self._backend.executor.attach(plan.jobid)
            return Job(task, plan, future, output_of(plan), self._backend)
        if isinstance(plan, RanksPlan):
            shutil.rmtree(plan.directory, ignore_errors=True)  # from an earlier attempt
            write_task(
                plan.directory,
                task.task_id,
                task.buffer,
                task.result_serializers,
                self._planner.tasks,
                plan.request.cwd,
            )
        prepare_process(task, plan)
        starts = prepare_output(plan)
        shape = None
        if task.urgency is None:
            shape = shape_of(plan, task.resource_specification, self._backend.resources)
        program = plan.request.resources.job_name or ""
        if shape is not None and self._held.takes(shape, program) and not alone:
            directory = self.records.directory_of(task.task_id)
            jobspec = build_jobspec(plan.request)
            held = self._held.submit(shape, program, task.task_id, directory, starts, jobspec)
            return Job(task, plan, held.future, output_of(plan, starts), held)
        mark = self.records.begin(task.task_id, starts, plan.request.mark or {})
        jobspec = build_jobspec(replace(plan.request, mark=mark))
        future = self._backend.submit(jobspec, urgency=plan.request.resources.urgency)
        if shape is not None:
            self._held.observed.follow(shape, program, task.task_id, future)
        return Job(task, plan, future, output_of(plan, starts), self._backend)
