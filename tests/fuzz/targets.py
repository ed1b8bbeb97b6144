"""What is fuzzed: each decoder of what another party sends, and what must hold whatever it gets.

A target is called with bytes. It returns, or raises one of its own errors; anything else is a
fault. `tools/fuzz` looks for faults, `test_targets.py` keeps what was found.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from flux_endpoint.amqp import Delivery
from flux_endpoint.amqp.bundle import MAX_BYTES, MAX_PARTS, Part, pack_bundle, unpack_bundle
from flux_endpoint.client import job_events as client_events
from flux_endpoint.client import results as client_results
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.endpoint.config import parse_config
from flux_endpoint.endpoint.intake import read_task
from flux_endpoint.endpoint.task_records import RefusedTask
from flux_endpoint.engine.local.jobspec import read_jobspec
from flux_endpoint.engine.workers.frames import FrameSocket
from flux_endpoint.errors import (
    ConfigurationError,
    DeserializationError,
    InvalidMessageError,
    ServiceError,
    UnrecognizedProtocolVersionError,
)
from flux_endpoint.functions import command_of
from flux_endpoint.functions.transport import CommandFunctionCode
from flux_endpoint.plugins import plugin_directory
from flux_endpoint.protocol.constraints import parse_constraints
from flux_endpoint.protocol.duration import parse_duration
from flux_endpoint.protocol.jobid import Form, format_jobid, parse_jobid
from flux_endpoint.protocol.messages import pack, unpack
from flux_endpoint.protocol.moment import parse_moment
from flux_endpoint.protocol.resources import ResourceSpecificationError, parse_resources
from flux_endpoint.serialize import ComputeSerializer, JSONData, pack_buffers, unpack_buffers
from flux_endpoint.service import event_consumer, heartbeats, results

_ID = "01234567-89ab-cdef-0123-456789abcdef"
#: Forms of job ids that are read, too.
_FORMS: Final[tuple[Form, ...]] = ("f58", "dec", "hex", "dothex", "words", "emoji")
_INVALID_MESSAGE = (InvalidMessageError, UnrecognizedProtocolVersionError)


@dataclass(frozen=True)
class Target:
    """A decoder.

    Attributes:
        run: called with an input.
        errors: what it may raise.
        seeds: valid inputs, from which others are made.
        words: what an input may hold.
    """

    run: Callable[[bytes], object]
    errors: tuple[type[BaseException], ...]
    seeds: tuple[bytes, ...]
    words: tuple[str, ...] = ()

    def __call__(self, data: bytes) -> None:
        """Run the decoder; raise what is a fault."""
        try:
            self.run(data)
        except self.errors as error:
            str(error).encode(errors="backslashreplace")  # it is shown


def _delivery(body: bytes, routing_key: str = "") -> Delivery:
    return Delivery(body, {}, "", routing_key, False, None, None, None)  # type: ignore[arg-type]


def _split(data: bytes) -> tuple[Any, bytes]:
    """Return the JSON in the first line, if it is any, and what follows."""
    head, _, rest = data.partition(b"\n")
    try:
        return json.loads(head), rest
    except (ValueError, RecursionError):
        return None, rest


def _text(data: bytes) -> str:
    """Return any text: also one that UTF-8 can't carry, as JSON can hold it."""
    return data.decode("utf-8", "surrogateescape")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _storable(value: Any) -> None:
    """Fail if a database, or another reader, would refuse what a decoder let through."""
    json.dumps(value, allow_nan=False).encode()


def _message(data: bytes) -> None:
    message = unpack(data)
    assert unpack(pack(message)) == message


def _task(data: bytes) -> None:
    headers, body = _split(data)
    if isinstance(headers, dict):
        task = read_task(body, headers, endpoint_id=_ID, allowed_functions=None)
        if not isinstance(task, RefusedTask):
            _storable([task.task_id, task.function_id, task.buffer, task.attach])


def _service_result(data: bytes) -> None:
    outcome = results._parse(data)
    outcome.data.decode(errors="surrogatepass")  # as it is read again
    _storable({**vars(outcome), "data": None})


def _service_events(data: bytes) -> None:
    message = unpack(data)
    if isinstance(message, event_consumer.TaskEvents):
        for each in message.events:
            event_consumer._checked(each)


def _service_report(data: bytes) -> None:
    endpoint_id, report = heartbeats._parse(_delivery(data, f"{_ID}.heartbeats"))
    assert endpoint_id == _ID
    _storable(report)
    json.dumps(report, ensure_ascii=False).encode()


def _bundle(data: bytes) -> None:
    parts = unpack_bundle(data)
    assert 0 < len(parts) <= MAX_PARTS
    assert sum(len(part.body) for part in parts) <= MAX_PARTS * MAX_BYTES


def _client_result(data: bytes) -> None:
    end = client_results.from_message(data, 1)
    future: ComputeFuture = ComputeFuture(end.task_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client_results.resolve(future, end)
    assert future.done()


def _client_document(data: bytes) -> None:
    document = _json(data)
    if isinstance(document, dict) and (end := client_results.from_document(document)):
        future: ComputeFuture = ComputeFuture(end.task_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client_results.resolve(future, end)
        assert future.done()


def _client_event(data: bytes) -> None:
    client_events._from_document(_json(data))


def _buffers(data: bytes) -> None:
    parts = unpack_buffers(_text(data))
    assert unpack_buffers(pack_buffers(parts)) == parts


def _command(data: bytes) -> None:
    found = command_of(_text(data))
    if found is not None:
        function, arguments = found
        function.check_call((), arguments)
        function.format_command(arguments)


def _data(data: bytes) -> None:
    allowed = [JSONData, CommandFunctionCode]  # neither runs anything
    ComputeSerializer(allowed_deserializer_types=allowed).deserialize(_text(data))


def _resources(data: bytes) -> None:
    given = _json(data)
    if isinstance(given, dict):
        parse_resources(given)


def _jobid(data: bytes) -> None:
    number = parse_jobid(_text(data))
    for form in _FORMS:
        assert parse_jobid(format_jobid(number, form)) == number


def _jobspec(data: bytes) -> None:
    read_jobspec(_text(data))


def _config(data: bytes) -> None:
    parse_config(_text(data), source="config.yaml")


def _frames(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(data[:65536])
        theirs.close()
        for header, _ in FrameSocket(ours).receive():
            assert isinstance(header, dict)


def _policy() -> ModuleType:
    path = plugin_directory() / "ingest" / "policy.py"
    specification = importlib.util.spec_from_file_location("fuzzed_policy", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


_POLICY = _policy()
_RULES = _POLICY.Policy(
    {
        "flux-endpoint": {
            "tasks": {"queue": "batch", "duration": "30m", "max-nodes": 2, "max-cores": 8,
                      "max-duration": "1h", "queues": ["batch"],
                      "users": {"root": {"max-nodes": 3}}},
            "workers": {"queue": "batch"},
        }
    }
)  # fmt: skip


def _ingest(data: bytes) -> None:
    jobspec = _json(data)
    if isinstance(jobspec, dict):
        _RULES.complete(jobspec, 0)
        _RULES.objections(jobspec, 0)


def _message_of(kind: str, content: str) -> bytes:
    return f'\x01{{"message_type":"{kind}","data":{content}}}'.encode()


_RESULT = _message_of(
    "result",
    f'{{"task_id":"{_ID}","data":"11\\n1","details":{{"jobid":"17","os":"Linux","python_version":'
    '"3.11.2","dill_version":"0.3.9","endpoint_id":"e"},"task_statuses":[{"timestamp":'
    '1700000000000000000,"state":"running","actor":"worker"}]}',
)
_FAILURE = _message_of(
    "result",
    f'{{"task_id":"{_ID}","data":"boom","error_details":{{"code":"RemoteExecutionError",'
    '"user_message":"it failed"}}',
)
_EVENTS = _message_of(
    "task_events",
    f'{{"events":[{{"task_id":"{_ID}","jobid":17,"name":"alloc","timestamp":1700000000.5,'
    '"context":{"annotations":{"sched":{"resource_summary":"rank0/core0"}}}}]}',
)
_REPORT = _message_of(
    "ep_status_report",
    f'{{"endpoint_id":"{_ID}","ep_status_report":{{"workers":1,"nodes":{{"a":[1,2.5,null,true]}}}},'
    '"task_statuses":{}}',
)
_JOBSPEC = (
    b'{"version":1,"resources":[{"type":"node","count":2,"with":[{"type":"slot","count":1,"label":'
    b'"task","with":[{"type":"core","count":1},{"type":"gpu","count":1}]}]}],"tasks":[{"command":'
    b'["true"],"slot":"task","count":{"per_slot":1}}],"attributes":{"system":{"duration":60,"cwd":'
    b'"/","environment":{},"queue":"batch","constraints":{"and":[{"ranks":["0-3"]}]},"files":'
    b'{"a":{"mode":33188,"data":"x"}},"shell":{"options":{"verbose":1}}},"user":{"flux_endpoint":'
    b'{"kind":"task","endpoint":"e"}}}}'
)
_JSON_WORDS = ('{"', '":', '",', "null", "true", "-1", "1e999", "NaN", "\\ud800", "[[", "]]", "{}")
_FIELDS = (
    "message_type", "data", "task_id", "details", "error_details", "task_statuses", "timestamp",
    "state", "actor", "code", "user_message", "events", "jobid", "name", "context",
    "ep_status_report", "endpoint_id", "python_version", "dill_version", _ID,
)  # fmt: skip

TARGETS: Final[dict[str, Target]] = {
    "message": Target(
        _message,
        _INVALID_MESSAGE,
        (_RESULT, _FAILURE, _EVENTS, _REPORT),
        (*_JSON_WORDS, *_FIELDS),
    ),
    "endpoint-task": Target(
        _task,
        _INVALID_MESSAGE,
        (
            f'{{"task_uuid":"{_ID}","function_uuid":"{_ID}","resource_specification":'
            f'"{{\\"num_nodes\\":1}}","result_serializers":["a.B"]}}\n'.encode()
            + _message_of("task", f'{{"task_id":"{_ID}","task_buffer":"3\\nabc"}}'),
            f'{{"task_uuid":"{_ID}","function_uuid":"{_ID}","attach_jobid":"17"}}\n\x01{{}}'.encode(),
        ),
        (*_JSON_WORDS, *_FIELDS, "attach_jobid", "task_buffer", "task_uuid", "function_uuid"),
    ),
    "service-result": Target(
        _service_result, _INVALID_MESSAGE, (_RESULT, _FAILURE), (*_JSON_WORDS, *_FIELDS)
    ),
    "service-events": Target(
        _service_events, _INVALID_MESSAGE, (_EVENTS,), (*_JSON_WORDS, *_FIELDS)
    ),
    "service-report": Target(
        _service_report, _INVALID_MESSAGE, (_REPORT,), (*_JSON_WORDS, *_FIELDS)
    ),
    "client-result": Target(
        _client_result, _INVALID_MESSAGE, (_RESULT, _FAILURE), (*_JSON_WORDS, *_FIELDS)
    ),
    "client-document": Target(
        _client_document,
        (),
        (
            f'{{"task_id":"{_ID}","status":"success","result":"11\\n1","completion_t":"1.5",'
            '"details":{"jobid":"17"}}'.encode(),
            b'{"task_id":"x","status":"failed","exception":"boom","reason":null}',
        ),
        (*_JSON_WORDS, "status", "success", "failed", "result", "exception", "reason"),
    ),
    "client-event": Target(
        _client_event,
        (ServiceError,),
        (b'{"name":"alloc","timestamp":1.5,"jobid":"17","context":{}}',),
        (*_JSON_WORDS, "name", "timestamp", "jobid", "context"),
    ),
    "buffers": Target(_buffers, (DeserializationError,), (b"3\nabc0\n12\n{}          ",)),
    "command": Target(
        _command,
        (TypeError, ValueError),
        tuple(
            pack_buffers(
                [f'fc\n{{"kind":"{kind}","cmd":"{cmd}"}}', "11\n[]", '11\n{"x":1.5,"n":3}']
            ).encode()
            for kind, cmd in (("shell", "echo {x:>{n}} {x!q}"), ("mpi", "a.out {x.real} {x!r:>4}"))
        ),
        ("fc\n", "11\n", "{x", "!q", ":>", "!r", "}}", "{{", '"cmd"', '"walltime"', '"stdout"'),
    ),
    "json-data": Target(_data, (DeserializationError,), (b'11\n{"a":[1,2.5,null]}',), _JSON_WORDS),
    "resources": Target(
        _resources,
        (ResourceSpecificationError,),
        (
            (b'{"num_nodes":2,"ranks_per_node":2,"cores_per_rank":1,"walltime":"1h","environment":'
            b'{"A":"b","C":null},"constraints":"host:a[1-3]&-ssd","dependencies":["afterok:17"],'
            b'"begin_time":"+1h","attributes":{"system.shell.options.x":1},"urgency":16}'),
        ),
        (*_JSON_WORDS, "num_ranks", "tasks_per_slot", "exclusive", "queue", "bank", "job_name",
         "shell_options", "launcher_options", "begin_time", "constraints", "gpus_per_rank"),
    ),
    "jobid": Target(
        _jobid,
        (ValueError,),
        ("ƒ2WXGLe".encode(), b"123", b"0xff", b"0000.0000.0000.0011", b"f2WXGLe"),
    ),
    "duration": Target(
        lambda data: parse_duration(_text(data)), (ValueError,), (b"1.5h", b"inf", b"90", b"3ms")
    ),
    "moment": Target(
        lambda data: parse_moment(_text(data), 1.7e9),
        (ValueError,),
        (b"+1h", b"2030-01-01T10:00", b"now"),
    ),
    "constraints": Target(
        lambda data: parse_constraints(_text(data)),
        (ValueError,),
        (b"host:a[1-3]&(ssd|-gpu)", b"rank:0-3 and not hosts:b"),
    ),
    "jobspec": Target(
        _jobspec,
        (OSError, TypeError),
        (_JOBSPEC.replace(b',"queue":"batch"', b""),),
        (*_JSON_WORDS, "resources", "count", "with", "slot", "per_slot", "total", "min", "max",
         "operator", "operand", "exclusive", "duration", "constraints", "hostlist", "ranks"),
    ),
    "config": Target(
        _config,
        (ConfigurationError,),
        (b"display_name: x\nengine:\n  type: FluxEngine\n  max_workers: 4\n  idle_timeout: 5m\n",),
        ("engine:", "type:", "&a", "*a", "!!", "<<:", "|", ">", "- ", "? ", "{{", "[["),
    ),
    "bundle": Target(
        _bundle,
        _INVALID_MESSAGE,
        (pack_bundle([Part(b"rest", b"head"), Part(b"more", b"head", {"a": "b"}, "id")], {}),),
        ("heads", "headers", "parts", "null", *_JSON_WORDS),
    ),
    "frames": Target(
        _frames, (EOFError, InvalidMessageError), (b"\0\0\0\x02\0\0\0\0\0\0\0\x01{}x",)
    ),
    "ingest": Target(
        _ingest,
        (),
        (_JOBSPEC,),
        (*_JSON_WORDS, "attributes", "system", "resources", "count", "with", "min", "max", "user"),
    ),
}  # fmt: skip
