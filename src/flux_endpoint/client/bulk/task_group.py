"""`TaskGroup`: the calls of a task group as a sequence of futures that are made when asked for."""

from __future__ import annotations

import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeoutError
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from flux_endpoint.client.backlog import SubmissionRoute
from flux_endpoint.client.bulk.calls import ENDED, OPEN, UNKNOWN, CallStates
from flux_endpoint.client.bulk.sender import FIRST_CALLS, MAX_CALLS, BulkSender, Part
from flux_endpoint.client.bulk.stream import CallStream, note_ends
from flux_endpoint.client.fork import Birthplace
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.needs import Needs, collected_inputs
from flux_endpoint.client.registry import FunctionRegistration, serialize_call
from flux_endpoint.client.results import STATUS_CHUNK, TaskEnd, resolve
from flux_endpoint.client.submitter import Submitter
from flux_endpoint.client.threads import janitor, on_client_thread
from flux_endpoint.errors import DependencyFailed, ServiceError

if TYPE_CHECKING:
    from flux_endpoint.client.executor import Executor

#: Seconds to wait for the queue of results before the first submission.
_QUEUE_TIMEOUT = 5.0

#: The most concurrent requests of `cancel`.
_KILLS_AT_A_TIME = 8
#: Positional and keyword arguments of a call.
_Call = tuple[Sequence[Any], Mapping[str, Any]]

#: The groups that Executors wait for, until all calls have ended.
_open: dict[TaskGroup, Submitter] = {}


class TaskGroup(Sequence[ComputeFuture]):
    """The calls of a task group, in order of submission.

    A call costs 21 bytes here. `group[i]` makes its future; the same one, as long as it is in use.
    Results are kept up to 32 MiB until they are taken; the others are requested from the service,
    128 at a time, when they are needed. So a result can be read again as long as the service keeps
    it. Threads may share a group; a forked child can't use it.

    `Executor.bulk_submit` and `Executor.task_group` make one.

    Attributes:
        task_group_id: id of the group, for `Executor.task_group` of a later program.

    Example:
        group = executor.bulk_submit(simulate, range(100_000))
        for future in group.as_completed():
            print(future.result())
    """

    def __init__(self, executor: Executor, task_group_id: str) -> None:
        self.task_group_id = task_group_id
        self._api = executor.client.api
        self._amqp_port = executor.amqp_port
        self._submitter = executor._submitter
        self._prepare: Callable[[ComputeFuture], None] = partial(
            executor._read_with, serializer=executor.serializer
        )
        self._calls = CallStates()
        self._futures: weakref.WeakValueDictionary[int, ComputeFuture]
        self._futures = weakref.WeakValueDictionary()
        #: Results of the latest request, until they are taken.
        self._answers: dict[int, TaskEnd] = {}
        self._stream: CallStream | None = None
        self._lock = threading.Lock()
        self._birthplace = Birthplace()

    def __repr__(self) -> str:
        calls = self._calls
        what = f"{len(calls)} tasks, {calls.ended} known to have ended"
        return f"<{type(self).__name__} {self.task_group_id}: {what}>"

    def __len__(self) -> int:
        return len(self._calls)

    @overload
    def __getitem__(self, index: int) -> ComputeFuture: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ComputeFuture]: ...

    def __getitem__(self, index: int | slice) -> ComputeFuture | Sequence[ComputeFuture]:
        """Return the future of a call, or a list of futures.

        Raises:
            IndexError: there is no such call.
            ServiceError: the service refuses to say what has become of it.
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: this is a forked child.
        """
        self._birthplace.require("this TaskGroup")
        indices = range(len(self))[index]
        if isinstance(indices, range):
            return [self._future(each, indices[at:]) for at, each in enumerate(indices)]
        return self._future(indices, range(indices, len(self)))

    def as_completed(self, timeout: float | None = None) -> Iterator[ComputeFuture]:
        """Yield the future of each call as it ends; those that have ended before, first.

        Args:
            timeout: seconds from now; then waiting for another raises `TimeoutError`.

        Raises:
            concurrent.futures.TimeoutError: some calls have not ended in time.
            ServiceError: the service refuses to answer.
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: the call would wait inside a callback, or in a forked child.
        """
        left = _countdown(timeout)
        self._refuse_to_deadlock()
        return self._ends(left)

    def results(self, timeout: float | None = None) -> Iterator[Any]:
        """Yield the results in order of submission.

        Args:
            timeout: seconds from now; then waiting for a result raises `TimeoutError`.

        Raises:
            TaskError: a task failed or was ended, and with it the iterator; `as_completed` and
                `group[i]` give the results of the others.
            concurrent.futures.TimeoutError: a call has not ended in time.
            ServiceError: the service refuses to answer.
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: the call would wait inside a callback, or in a forked child.
        """
        left = _countdown(timeout)
        self._refuse_to_deadlock()
        everything = range(len(self))
        return (self._future(each, everything[each:]).result(left()) for each in everything)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all calls have ended; return whether they have.

        Args:
            timeout: the longest time (s) to wait; `None`: no limit.

        Raises:
            ServiceError: the service refuses to answer.
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: the call would wait inside a callback, or in a forked child.
        """
        left = _countdown(timeout)
        self._refuse_to_deadlock()
        while unknown := self._calls.in_state(UNKNOWN, STATUS_CHUNK):
            self._ask(unknown)
            if left() == 0.0:
                break
        return self._calls.wait_for_end(len(self), left())

    def report(self) -> dict[str, Any]:
        """Return how far the group is: tasks by state, failures by kind, rate, expected end.

        The keys are those of `flux-endpoint group --json`. It is one request, for any size.

        Raises:
            ServiceError: the service refuses to answer.
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: this is a forked child.
        """
        self._birthplace.require("this TaskGroup")
        return self._api.group_report(self.task_group_id)

    def failed(self) -> list[int]:
        """Return the indices of the calls that have failed, or were cancelled, so far.

        It asks for no results. So `[inputs[i] for i in group.failed()]` is what to submit again.

        Raises:
            ServiceError: the service refuses to answer.
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: this is a forked child.
        """
        return self._indices_in(("failed", "cancelled"))

    def unfinished(self) -> list[int]:
        """Return the indices of the calls that have not ended yet; raises as `failed`."""
        return self._indices_in(("received", "pending", "queued", "running"))

    def cancel(self) -> int:
        """End all calls that have not ended, queued or running, with one request for each.

        Their futures then raise `TaskCancelled`.

        Returns:
            The number of calls that were ended, or whose endpoint was asked to end them.

        Raises:
            ServiceError: the service refuses some of them, e.g. with the code `KILL_NOT_SUPPORTED`;
                this is the first error, and the others were ended.
            ServiceUnreachableError: the service can't be reached.
            RuntimeError: this is a forked child.
        """
        ids = [self._calls.task_id(index) for index in self.unfinished()]
        threads = ThreadPoolExecutor(_KILLS_AT_A_TIME, thread_name_prefix="cancel")
        try:
            answers = list(threads.map(self._kill, ids))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
        for each in answers:
            if isinstance(each, ServiceError):
                raise each
        return sum(bool(each) for each in answers)

    def _kill(self, task_id: str) -> bool | ServiceError:
        try:
            return bool(self._api.kill(task_id).get("delivered"))
        except ServiceError as error:
            return error

    # The parts of the above.

    def _indices_in(self, states: Sequence[str]) -> list[int]:
        self._birthplace.require("this TaskGroup")
        found: list[int] = []
        before: str | None = None
        while True:
            ids, before = self._api.group_tasks(self.task_group_id, states, before)
            found += [at for at in map(self._calls.find, ids) if at is not None]
            if before is None:
                return sorted(found)

    def _ends(self, left: Callable[[], float | None]) -> Iterator[ComputeFuture]:
        calls, taken = self._calls, 0
        while taken < len(self):
            ended = calls.ended_from(taken)
            if ended:
                for at, index in enumerate(ended):
                    yield self._future(index, ended[at:])
                taken += len(ended)
            elif unknown := calls.in_state(UNKNOWN, STATUS_CHUNK):
                self._ask(unknown)
            elif not calls.wait_for_end(taken + 1, left()):
                unfinished = len(self) - calls.ended
                raise FuturesTimeoutError(f"{unfinished} (of {len(self)}) calls unfinished")

    def _future(self, index: int, ahead: Sequence[int]) -> ComputeFuture:
        """Return the future of a call; `ahead` are the calls that are wanted next, itself first."""
        with self._lock:
            future = self._futures.get(index)
            if future is not None:
                return future
        calls = self._calls
        if self._must_ask(index):
            self._ask([each for each in ahead[:STATUS_CHUNK] if self._must_ask(each)])
        future = ComputeFuture(calls.task_id(index), task_group_id=self.task_group_id)
        future.set_running_or_notify_cancel()
        self._prepare(future)
        with self._lock:
            future = self._futures.setdefault(index, future)
        while not (future.done() or calls.await_end(index, future)):
            end = calls.take(index) or self._answers.pop(index, None)
            if end is not None:
                resolve(future, end)
            else:  # another thread has taken it
                self._ask([index])
        return future

    def _must_ask(self, index: int) -> bool:
        """Return whether only the service knows whether, or how, a call has ended."""
        calls = self._calls
        is_known = calls.state(index) == OPEN or calls.is_kept(index) or index in self._answers
        return not is_known

    def _ask(self, indices: Sequence[int]) -> None:
        """Ask the service for the states of calls, and for their results."""
        calls = self._calls
        openings = calls.openings
        ids = {calls.task_id(each): each for each in indices}
        ends = note_ends(calls, self._api.batch_status(list(ids)), keep=False)
        self._answers = {ids[task_id]: end for task_id, end in ends.items() if task_id in ids}
        still_open = [each for each in indices if calls.state(each) != ENDED]
        if still_open:
            calls.still_open(still_open)
            stream = self._follow()
            if openings != calls.openings:  # they may have ended before the queue was opened
                stream.check()

    def _follow(self) -> CallStream:
        """Consume the group's results from now on."""
        with self._lock:
            if self._stream is None:
                api = self._api.background()
                stream = CallStream(api, self.task_group_id, self._amqp_port, self._calls)
                stream.follow()
                self._stream = stream
                weakref.finalize(self, janitor.leave, stream.leave).atexit = False
            return self._stream

    def _refuse_to_deadlock(self) -> None:
        self._birthplace.require("this TaskGroup")
        if on_client_thread():
            raise RuntimeError("Cannot wait for a task group from inside callback")


def _countdown(timeout: float | None) -> Callable[[], float | None]:
    """Return a function that returns the seconds that are left; `None`: no limit."""
    if timeout is None:
        return lambda: None
    deadline = time.monotonic() + timeout
    return lambda: max(0.0, deadline - time.monotonic())


def open_groups(submitter: Submitter) -> list[TaskGroup]:
    """Return the groups that an Executor waits for.

    Args:
        submitter: the Executor's.
    """
    return [group for group, its in list(_open.items()) if its is submitter]


def existing_group(executor: Executor, task_group_id: str) -> TaskGroup:
    """Return a task group of the service; see `Executor.task_group`."""
    group = TaskGroup(executor, task_group_id)
    group._calls.add(executor.client.api.task_group(task_group_id), UNKNOWN)
    return group


def submit_bulk(
    executor: Executor,
    route: SubmissionRoute,
    function: FunctionRegistration,
    calls: Iterable[_Call],
) -> TaskGroup:
    """Submit calls as a new task group; see `Executor.bulk_submit`.

    Args:
        executor: the Executor.
        route: the settings of the calls; its group is replaced.
        function: the function.
        calls: their arguments.
    """
    if on_client_thread():
        raise RuntimeError("Cannot wait for a bulk submission from inside callback")
    route = route._replace(task_group_id=str(uuid.uuid4()))
    group = TaskGroup(executor, route.task_group_id)
    group._calls.begin()
    stream = group._follow()
    _open[group] = group._submitter
    stream.over.add_done_callback(lambda _: _open.pop(group, None))
    group._submitter.track(stream.over)
    sender = None
    try:
        stream.opened.wait(_QUEUE_TIMEOUT)  # otherwise the service is asked later
        openings = group._calls.openings
        sender = BulkSender(
            executor.client.api.background(),
            group._submitter,
            route,
            function,
            group._calls.add,
        )
        _send_all(sender, executor, function, calls)
    except BaseException as error:
        if sender is not None:
            sender.abandon()
        stream.close()
        _explain(error, group, sender.unanswered if sender is not None else 0)
        raise
    # Calls may have ended before the queue was opened, when their ids were not known here.
    if group._calls.complete() or openings != group._calls.openings:
        stream.check()
    stream.release()
    return group


def _send_all(
    sender: BulkSender,
    executor: Executor,
    function: FunctionRegistration,
    calls: Iterable[_Call],
) -> None:
    part, most = Part(), FIRST_CALLS
    serializer = executor.serializer
    for args, kwargs in calls:
        with collected_inputs() as inputs:
            payload = serialize_call(
                serializer, function.name, args, kwargs, may_be_command=function.may_be_command
            )
        part.add(payload, _needs_of(inputs) if inputs else None)
        if part.is_full(most):
            sender.put(part)
            part, most = Part(), MAX_CALLS
    if part.payloads:
        sender.put(part)
    sender.finish()


def _needs_of(inputs: Sequence[ComputeFuture]) -> dict[str, Any]:
    for each in inputs:
        if each.wait_submitted() is None:
            raise DependencyFailed(f"a task that a call needs was never submitted: {each}")
    return Needs(tuple(inputs)).as_request()


def _explain(error: BaseException, group: TaskGroup, unanswered: int) -> None:
    """Say what has become of the calls before an error.

    Args:
        error: the error.
        group: the calls that were submitted.
        unanswered: number of calls whose request was sent, but not answered.
    """
    count = len(group)
    text = f"the bulk submission ended early, {count} of its calls were submitted"
    if unanswered:
        text += f", and {unanswered} more may have been: their request was not answered"
    if count or unanswered:
        text += (
            f". They run: Executor(...).task_group({group.task_group_id!r}) gets their results, "
            f"`flux-endpoint cancel --group {group.task_group_id}` ends them"
        )
    error.add_note(text)
