"""Turns a jobspec and an allocation into the processes of a job, as Flux's job shell does."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_endpoint.engine.local.jobspec import LocalJobspec, stream_options
from flux_endpoint.engine.local.resources import Allocation, NodeShare
from flux_endpoint.processes import Command
from flux_endpoint.protocol.jobid import Form, format_jobid

#: Variables of an enclosing Flux instance or launcher, which would mislead the tasks.
_NOT_INHERITED = ("FLUX_URI", "FLUX_KVS_NAMESPACE", "FLUX_JOB_ID_PATH")
_NOT_INHERITED_PREFIX = ("PMI_", "PMIX_")
#: Tells the launcher of a task's ranks the places of the job's slots.
PLACES = "FLUX_ENDPOINT_LOCAL_SLOTS"
#: The most tasks of one job; each is a process of this machine.
MAX_TASKS = 10_000
#: A template as Flux's job shell finds it: up to the first closing braces.
_TEMPLATE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LaunchedTask:
    """One process of a job: its place and its arguments."""

    rank: int
    local_id: int
    command: Command


class Launcher:
    """Plans the tasks of one job.

    Args:
        jobid: the job's id.
        spec: its jobspec.
        allocation: its resources.
        directory: default directory of its output, and parent of its temporary directory.
        default_cwd: its working directory, unless the jobspec has one.
        variables: environment variables that the surrounding job gives to each task; those of Flux
            take precedence over the jobspec's.
    """

    def __init__(
        self,
        jobid: int,
        spec: LocalJobspec,
        allocation: Allocation,
        *,
        directory: Path,
        default_cwd: str,
        variables: Mapping[str, str],
    ) -> None:
        self._variables = variables
        self._jobid = jobid
        self._spec = spec
        self._allocation = allocation
        self._directory = directory
        self._f58 = format_jobid(jobid)
        self._counts = _task_counts(spec, allocation)
        self.size = sum(self._counts)
        # Tasks start from another directory than this process's, and one after the other.
        cwd = os.path.join(default_cwd, spec.cwd) if spec.cwd else default_cwd  # noqa: PTH118
        self._cwd = cwd if os.path.isdir(cwd) else "/tmp"  # noqa: PTH112, S108 - as Flux's shell
        self._opened: set[str] = set()
        #: For file names: not every locale allows ƒ in these.
        self._number = format_jobid(jobid, "dec")
        self.temporary = directory / f"tmp-{self._number}"

    @property
    def taskmap(self) -> list[list[int]]:
        """The task map of RFC 34: entries of first node, nodes, tasks per node, repetitions."""
        blocks: list[list[int]] = []
        for index, count in enumerate(self._counts):
            if blocks and blocks[-1][2] == count:
                blocks[-1][1] += 1
            else:
                blocks.append([index, 1, count, 1])
        return blocks

    def plan(self, channels: Sequence[int] = ()) -> list[list[LaunchedTask]]:
        """Return the tasks of each node, ranks in blocks; creates their output files.

        Args:
            channels: for each rank, its descriptor of a PMI server; empty: there is none.

        Raises:
            OSError: an output file can't be opened.
            ValueError: there are too many tasks.
        """
        if self.size > MAX_TASKS:
            raise ValueError(f"{self.size} tasks; the most is {MAX_TASKS}")
        self.temporary.mkdir(mode=0o700, exist_ok=True)
        for name, content, mode in self._spec.files:
            path = self.temporary / name
            try:
                path.write_bytes(content)
            except OSError as error:  # when the disk is full, it does not name the file
                raise OSError(error.errno, error.strerror, str(path)) from error
            path.chmod(mode)
        base = self._base_environment()
        nodes: list[list[LaunchedTask]] = []
        rank = 0
        for index, share in enumerate(self._allocation):
            tasks = []
            for local_id in range(self._counts[index]):
                channel = channels[rank] if channels else None
                tasks.append(self._task(index, share, rank, local_id, base, channel))
                rank += 1
            nodes.append(tasks)
        return nodes

    def _task(  # noqa: PLR0917 - one place, in parts
        self,
        index: int,
        share: NodeShare,
        rank: int,
        local_id: int,
        base: dict[str, str],
        channel: int | None,
    ) -> LaunchedTask:
        env = {
            **base,
            "FLUX_TASK_RANK": str(rank),
            "FLUX_TASK_LOCAL_ID": str(local_id),
            "FLUX_ENDPOINT_LOCAL_NODE": str(share.rank),
            **self._gpu_environment(share, local_id, self._counts[index]),
        }
        if channel is not None:
            env |= {"PMI_RANK": str(rank), "PMI_SIZE": str(self.size)}
        names = {
            "task.id": rank,
            "task.rank": rank,
            "taskid": rank,
            "task.index": local_id,
            "task.localid": local_id,
            "node.id": index,
            "node.name": socket.gethostname(),
            "tmpdir": self.temporary,
        }
        options = self._spec.shell_options
        stdout = self._output(stream_options(options, "output", "stdout"), "out", names)
        stderr = self._output(stream_options(options, "output", "stderr"), "err", names)
        stdin = stream_options(options, "input", "stdin").get("path")
        argv = [self._render(word, names) for word in self._spec.command]
        command = Command(argv, env, self._cwd, stdin, stdout, stderr, channel)
        return LaunchedTask(rank, local_id, command)

    def _base_environment(self) -> dict[str, str]:
        env = {
            key: value
            for key, value in self._spec.environment.items()
            if key not in _NOT_INHERITED and not key.startswith(_NOT_INHERITED_PREFIX)
        }
        env["FLUX_JOB_ID"] = self._f58
        env["FLUX_JOB_SIZE"] = str(self.size)
        env["FLUX_JOB_NNODES"] = str(len(self._allocation))
        env["FLUX_JOB_TMPDIR"] = str(self.temporary)
        if self.size < sum(share.slots for share in self._allocation):
            env[PLACES] = self._places()
        more = self._variables.items()
        return env | {n: value for n, value in more if n.startswith("FLUX_") or n not in env}

    def _places(self) -> str:
        """Return node and gpus of each slot, for ranks that the job's single task starts there."""
        places = []
        for share in self._allocation:
            for slot in range(share.slots):
                gpus = self._gpu_environment(share, slot, share.slots)
                places.append(f"{share.rank}:{gpus.get('CUDA_VISIBLE_DEVICES', '')}")
        return ";".join(places)

    def _gpu_environment(self, share: NodeShare, local_id: int, tasks: int) -> dict[str, str]:
        affinity = str(self._spec.shell_options.get("gpu-affinity", "on"))
        if affinity == "off":
            return {}
        gpus = share.gpus
        if affinity.startswith("per-task") and gpus:
            each = max(1, len(gpus) // tasks)
            first = local_id * each % len(gpus)
            gpus = gpus[first : first + each]
        visible = ",".join(map(str, gpus)) or "-1"
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": visible}

    def _output(self, options: Mapping[str, Any], suffix: str, names: Mapping[str, Any]) -> str:
        if options.get("type") == "kvs" or "path" not in options:
            return str(self._directory / f"job-{self._number}.{suffix}")
        path = self._cwd_path(self._render(options["path"], names))
        if path not in self._opened:
            self._opened.add(path)
            # Tasks append, so that those that share a file do not overwrite one another.
            appended = self._spec.shell_options["output"].get("mode") == "append"
            _create(path, appended=appended)
        return path

    def _cwd_path(self, path: str) -> str:
        return os.path.join(self._cwd, path)  # noqa: PTH118 - text in, text out

    def _render(self, template: str, names: Mapping[str, Any]) -> str:
        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name in names:
                return str(names[name])
            first, _, form = name.partition(".")
            if first in ("id", "jobid") and form in _FORMS:
                return format_jobid(self._jobid, _FORMS[form])
            match name:
                case "name":
                    return self._spec.name or Path(self._spec.command[0]).name
                case "size" | "ntasks":
                    return str(self.size)
                case "nnodes":
                    return str(len(self._allocation))
            return found[0]  # an unknown template stays as it is

        return _TEMPLATE.sub(value, template)


def _create(path: str, *, appended: bool) -> None:
    """Create an output file, empty unless it is appended to; raises OSError if that fails.

    A named pipe is left alone: its task opens it, and waits for a reader.
    """
    with suppress(FileNotFoundError):
        if stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116 - text in
            return
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    os.close(os.open(path, flags if appended else flags | os.O_TRUNC, 0o666))


_FORMS: dict[str, Form] = {
    "": "f58",
    "f58": "f58",
    "dec": "dec",
    "hex": "hex",
    "dothex": "dothex",
    "kvs": "kvs",
    "words": "words",
    "emoji": "emoji",
}


def _task_counts(spec: LocalJobspec, allocation: Allocation) -> list[int]:
    per_resource = spec.shell_options.get("per-resource")
    if per_resource is not None:
        each = per_resource.get("count", 1)
        if per_resource["type"] == "node":
            return [each for _ in allocation]
        return [each * len(share.cores) for share in allocation]
    if spec.total is None:
        return [spec.per_slot * share.slots for share in allocation]
    # One task per slot in the order of the nodes; the remaining tasks start over again.
    counts = [0] * len(allocation)
    left = spec.total
    while left and sum(counts) <= MAX_TASKS:
        for index, share in enumerate(allocation):
            more = min(left, share.slots)
            counts[index] += more
            left -= more
    return counts
