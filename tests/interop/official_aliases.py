"""The official package's names for ours, in a process that runs the official unit tests.

A plugin of pytest, loaded by `test_official_unit_tests.py` in a process of its own. In it
`globus_compute_sdk` and its modules are ours, also what those tests read of the official modules'
own parts, as far as ours have the like. All that is translated is here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from official_differences import difference_of

import flux_endpoint
from flux_endpoint.client import Batch, Client, Executor, executor
from flux_endpoint.client.commands import RegisteredCommands
from flux_endpoint.client.ids import as_optional_uuid, as_uuid
from flux_endpoint.serialize import (
    AllowlistWildcard,
    CombinedCode,
    ComputeSerializer,
    SerializationStrategy,
    Strategylike,
    ValidatedStrategylike,
    pack_buffers,
    serializer,
    unpack_buffers,
)
from flux_endpoint.serialize.strategies import _by_identifier, all_strategies

PACKAGE = "globus_compute_sdk"
#: Where the outcome of each test goes, one JSON object a line.
REPORT = Path(os.environ["OFFICIAL_TESTS_REPORT"])
#: Modules of ours under official names.
MODULES = {
    "": "",
    ".errors": ".errors",
    ".sdk": ".sdk",
    ".sdk.asynchronous": ".sdk.asynchronous",
    ".sdk.asynchronous.compute_future": ".sdk.asynchronous.compute_future",
    ".sdk.batch": ".sdk.batch",
    ".sdk.client": ".client.client",  # where their tests put mocks, ours looks
    ".sdk.executor": ".client.executor",
    ".sdk.mpi_function": ".sdk.mpi_function",
    ".sdk.shell_function": ".sdk.shell_function",
    ".serialize": ".serialize",
    ".serialize.base": ".serialize.base",
    ".serialize.concretes": ".serialize.concretes",
    ".serialize.facade": ".serialize.serializer",
}


class _NoOthers:
    """Keeps the official package itself out of this process."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == PACKAGE:
            raise ModuleNotFoundError(f"{name} has no alias here", name=name)


def _alias_modules() -> None:
    sys.meta_path.insert(0, _NoOthers())  # type: ignore[arg-type]
    for theirs, ours in MODULES.items():
        _alias(theirs, importlib.import_module("flux_endpoint" + ours))
    _module(".sdk.utils", chunk_by=_chunk_by)
    _module(".sdk.utils.uuid_like", as_uuid=as_uuid, as_optional_uuid=_as_optional_uuid)
    _module(".serialize.utils", pack_buffers=pack_buffers, unpack_buffers=unpack_buffers)
    # For fixtures of the official conftest that nothing of ours uses.
    _module(".sdk.compute_dir", COMPUTE_DIR_ENV="NO_SUCH_DIRECTORY", ensure_compute_dir=None)


def _module(name: str, **content: Any) -> None:
    module = types.ModuleType(PACKAGE + name)
    vars(module).update(content)
    _alias(name, module)


def _alias(name: str, module: types.ModuleType) -> None:
    sys.modules[PACKAGE + name] = module
    parent, _, own = name.rpartition(".")
    if own:  # `import a.b.c as d` reads attributes
        setattr(sys.modules[PACKAGE + parent], own, module)


def _chunk_by(items: Any, size: int) -> Iterator[tuple[Any, ...]]:
    items = list(items)
    return (tuple(items[at : at + size]) for at in range(0, len(items), size))


def _as_optional_uuid(value: Any) -> uuid.UUID | None:
    return as_optional_uuid(value, "id")


# What their tests read of the official modules' own parts.


class _Absent:
    """An own part of an official module that ours has nothing like."""

    def __init__(self, *_: object, **__: object) -> None:
        raise NotImplementedError("an own part of the official package")


def _alias_parts() -> None:
    concretes = sys.modules[f"{PACKAGE}.serialize.concretes"]
    theirs = [one for one in all_strategies() if type(one).__module__.startswith("flux_endpoint.s")]
    concretes.SELECTABLE_STRATEGIES = [  # type: ignore[attr-defined]
        type(one) for one in theirs if not one.read_only
    ]
    SerializationStrategy._CACHE = _by_identifier  # type: ignore[attr-defined]
    CombinedCode._chunk_strategies = {  # type: ignore[attr-defined]
        part.identifier: part for part in CombinedCode.strategies
    }
    for part in (AllowlistWildcard, Strategylike, ValidatedStrategylike):
        setattr(serializer, getattr(part, "__name__", "Strategylike"), part)
    Batch._serde = property(lambda batch: batch._serializer)  # type: ignore[attr-defined]
    sys.modules[f"{PACKAGE}.sdk.client"]._ComputeWebClient = _WebClient  # type: ignore[attr-defined]
    executor._RESULT_WATCHERS = {}  # type: ignore[attr-defined]
    for name in ("_ResultWatcher", "_TaskSubmissionInfo"):
        setattr(executor, name, type(name, (_Absent,), {}))
    executor.log = logging.getLogger("flux_endpoint.client.executor")  # type: ignore[attr-defined]


class _WebClient:
    v2: Any
    v3: Any


# Their tests give an Executor a mock of a Client, which gets the routes that ours asks.


class _Routes:
    """The routes that an Executor of ours uses, as calls of a mock of the official Client."""

    url, identity = "http://mock", ("http://mock", "token")

    def __init__(self, client: Any) -> None:
        self._client = client

    def background(self) -> _Routes:
        return self

    def register(self, body: dict[str, Any]) -> str:
        return str(self._client.register_function(body))

    def submit(self, endpoint_id: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        batch = self._client.create_batch(
            task_group_id=body.get("task_group_id"),
            resource_specification=body.get("resource_specification"),
            user_endpoint_config=body.get("user_endpoint_config"),
            result_serializers=body.get("result_serializers", []),
            create_websocket_queue=True,  # ours opens its own, whatever the batch says
        )
        answer: dict[str, Any] = self._client.batch_run(uuid.UUID(endpoint_id), batch)
        return answer

    def task_group(self, group: str) -> list[str]:
        found = self._client._compute_web_client.v2.get_task_group(uuid.UUID(group))
        return [str(task["id"]) for task in found.get("tasks", [])]

    def batch_status(self, ids: list[str]) -> dict[str, Any]:
        found = self._client._compute_web_client.v2.get_task_batch(tuple(ids)).data["results"]
        return {str(id_): document for id_, document in found.items()}

    def open_queue(
        self, kind: str, task_group_id: str, client_id: str, amqp_port: int | None
    ) -> tuple[str, str]:
        return f"amqp://127.0.0.1:{amqp_port or 1}", f"{kind}.{task_group_id}.{client_id}"

    def endpoint_status(self, endpoint_id: str) -> dict[str, Any]:
        return {}


def _alias_executor() -> None:
    construct = Executor.__init__

    def init(self: Executor, *args: Any, **kwargs: Any) -> None:
        client = kwargs.get("client")
        if isinstance(client, mock.Mock):
            client.api, client._commands = _Routes(client), RegisteredCommands()
            if not hasattr(client, "fx_serializer"):
                client.fx_serializer = ComputeSerializer()
            elif isinstance(client.fx_serializer, mock.Mock):
                _equip(client.fx_serializer)
        construct(self, *args, **kwargs)

    Executor.__init__ = init  # type: ignore[method-assign]
    Executor.serializer = property(  # type: ignore[assignment]
        Executor.serializer.fget, _equipping(Executor.serializer.fset)
    )
    Executor._stopped = property(lambda self: self._submitter.is_closed)  # type: ignore[attr-defined]
    Executor._task_submitter = property(  # type: ignore[attr-defined]
        lambda self: self._submitter._thread
    )
    Executor._submitter_thread_exception_captured = False  # type: ignore[attr-defined]


def _equipping(assign: Any) -> Any:
    def equip_and_assign(self: Executor, value: Any) -> None:
        if isinstance(value, mock.Mock):
            _equip(value)
        assign(self, value)

    return equip_and_assign


def _equip(serde: mock.Mock) -> None:
    real = ComputeSerializer()
    for name in ("serialize", "deserialize", "pack_buffers", "unpack_buffers"):
        getattr(serde, name).side_effect = getattr(real, name)
    serde.data_serializer = real.data_serializer


def _bound_waits() -> None:
    """Let a test that is listed as different wait shortly for what never happens here.

    The others may wait long: the machine may be loaded.
    """
    from tests import utils  # theirs

    for name in ("try_assert", "try_for_timeout"):
        wait = getattr(utils, name)

        def bounded(check: Any, *args: Any, _wait: Any = wait, **kwargs: Any) -> Any:
            kwargs["timeout_ms"] = 100 if difference_of(_running[0]) else 60_000
            return _wait(check, *args, **kwargs)

        setattr(utils, name, bounded)


_running = [""]


def pytest_runtest_setup(item: pytest.Item) -> None:
    _running[0] = item.nodeid


_alias_modules()
_alias_parts()
_bound_waits()
_alias_executor()
assert isinstance(Client, type)
assert sys.modules[PACKAGE] is flux_endpoint


# Fixtures of plugins that those tests use, and the report.


class _Mocker:
    """As much of pytest-mock as the tests use."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.patch = self._patch()

    def _patch(self) -> Any:
        def patch(target: str, *args: Any, **kwargs: Any) -> Any:
            return self._stack.enter_context(mock.patch(target, *args, **kwargs))

        def patch_object(target: Any, *args: Any, **kwargs: Any) -> Any:
            return self._stack.enter_context(mock.patch.object(target, *args, **kwargs))

        patch.object = patch_object  # type: ignore[attr-defined]
        return patch


sys.modules["pytest_mock"] = types.ModuleType("pytest_mock")
sys.modules["pytest_mock"].MockerFixture = _Mocker  # type: ignore[attr-defined]


@pytest.fixture
def mocker() -> Iterator[_Mocker]:
    with contextlib.ExitStack() as stack:
        yield _Mocker(stack)


@pytest.fixture
def fs() -> None:
    """Stands for pyfakefs: the one test that asks for it touches no file."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        line = {"test": report.nodeid, "outcome": report.outcome, "text": report.longreprtext}
        with REPORT.open("a") as file:
            file.write(json.dumps(line) + "\n")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        line = {"test": report.nodeid, "outcome": "failed", "text": report.longreprtext}
        with REPORT.open("a") as file:
            file.write(json.dumps(line) + "\n")
