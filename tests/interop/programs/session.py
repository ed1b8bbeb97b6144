"""A user of the official SDK, which knows nothing of this project: what it sees, as JSON."""

import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from globus_compute_sdk import Client, Executor, MPIFunction, ShellFunction, ShellResult, serialize
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_compute_sdk.serialize import ComputeSerializer

ENDPOINT = json.loads(sys.argv[1])["endpoint_id"]
CODE = [
    "DillCode",
    "DillCodeTextInspect",
    "DillCodeSource",
    "PureSourceTextInspect",
    "PureSourceDill",
    "CombinedCode",
    "AllCodeStrategies",
]
DATA = ["DillDataBase64", "JSONData", "AllDataStrategies"]
FAST = {"api_burst_limit": 8, "api_burst_window_s": 1}
seen: dict = {}


def area(width, height=2):
    return width * height


def fail(text):
    raise ZeroDivisionError(text)


def own_command(text):
    from globus_compute_sdk import ShellFunction

    result = ShellFunction("echo {text}")(text=text)
    return [result, result.stdout]


def of_result(result):
    from globus_compute_sdk.sdk.shell_function import ShellResult

    return isinstance(result, ShellResult), result.stdout


def large():
    return "x" * (11 << 20)


def plain(result):
    return {"type": f"{type(result).__module__}.{type(result).__name__}", **vars(result)}


def error_of(future):
    error = future.exception(60)
    return {"type": type(error).__name__, "text": str(error)}


def executor(**options):
    return Executor(endpoint_id=ENDPOINT, client=client, **FAST, **options)


client = Client()

with executor() as ex:
    done = ShellFunction("echo {x}; echo oops >&2")
    tasks = {
        "function": ex.submit(area, 3, height=5),
        "exception": ex.submit(fail, "by zero"),
        "shell": ex.submit(done, x="$HOME/a b"),
        "shell_failed": ex.submit(ShellFunction("exit 3", name="three")),
        "return_dict": ex.submit(ShellFunction("echo {x}", return_dict=True), x=1),
        "walltime": ex.submit(
            ShellFunction("echo $BASHPID; sleep 600", walltime=1, return_dict=True)
        ),
        "missing": ex.submit(ShellFunction("echo {x} {y}"), x=1),
        "own_command": ex.submit(own_command, "hello"),
        "of_result": ex.submit(of_result, ShellResult("c", "out", "", 0)),
        "large": ex.submit(large),
    }
    seen["function"] = tasks["function"].result(60)
    seen["shell"] = plain(tasks["shell"].result(60))
    seen["shell_failed"] = plain(tasks["shell_failed"].result(60))
    seen["return_dict"] = tasks["return_dict"].result(60)
    seen["walltime"] = tasks["walltime"].result(60)
    seen["of_result"] = tasks["of_result"].result(60)
    own, text = tasks["own_command"].result(60)
    seen["own_command"] = [plain(own), text]
    for name in ("exception", "missing", "large"):
        seen[name] = error_of(tasks[name])
    seen["failure_is"] = isinstance(tasks["exception"].exception(), TaskExecutionFailed)

    ex.resource_specification = {"num_nodes": 1, "ranks_per_node": 2}
    mpi = {
        "mpi": ex.submit(MPIFunction("bash -c 'echo rank {x}'"), x=7),
        "mpi_dict": ex.submit(MPIFunction("hostname", return_dict=True)),
        "mpi_path": ex.submit(MPIFunction("ls {x}", stdout=Path("o")), x=Path("/")),
        "mpi_walltime": ex.submit(MPIFunction("sleep 600", walltime=1)),
        "ranks": ex.submit(area, 3),
        "refused": None,
    }
    ex.resource_specification = {"num_nodez": 1}
    mpi["refused"] = ex.submit(MPIFunction("true"))
    ex.resource_specification = None
    for name in ("mpi", "mpi_path", "mpi_walltime"):
        seen[name] = plain(mpi[name].result(90))
    seen["mpi_dict"] = mpi["mpi_dict"].result(90)
    seen["ranks"] = mpi["ranks"].result(90)
    seen["refused"] = error_of(mpi["refused"])
    seen["task_ids"] = {name: future.task_id for name, future in mpi.items()}

    source = "def cube(x):\n    '''Grün'''\n    return x ** 3\n"
    cube = ex.register_source_code(source, "cube")
    seen["source"] = ex.submit_to_registered_function(cube, (3,)).result(60)

    seen["hardware"] = ex.get_worker_hardware_details()
    cancelled = ex.submit(area, 1)
    cancelled.result(60)
    seen["cancel"] = cancelled.cancel()
    try:
        ex.map(area, [1, 2])
    except NotImplementedError:
        seen["map"] = "NotImplementedError"

port = urlsplit(client.get_result_amqp_url()["connection_url"]).port
ex = executor(user_endpoint_config={"any": "thing"})
seen["template"] = error_of(ex.submit(area, 1))
with executor(amqp_port=port, batch_size=64) as ex:
    many = [ex.submit(area, n, height=3) for n in range(200)]
    seen["many"] = [future.result(60) for future in many]
    seen["groups"] = len({str(ex.task_group_id), str(executor().task_group_id)})

ex = executor()
seen["too_large"] = error_of(ex.submit(len, "x" * (11 << 20)))
try:
    ex.submit(area, 1)
except RuntimeError as error:
    seen["after_an_error"] = str(error)

sent = []
for code, data in [(name, DATA[0]) for name in CODE] + [(CODE[0], name) for name in DATA]:
    selected = ComputeSerializer(
        strategy_code=getattr(serialize, code)(), strategy_data=getattr(serialize, data)()
    )
    ex = executor(serializer=selected)
    futures = [ex.submit(area, 2, height=4)]
    if code in ("DillCode", "CombinedCode", "AllCodeStrategies"):
        futures.append(ex.submit(ShellFunction("echo {x}", return_dict=True), x=1))
    sent.append((f"{code}, {data}", ex, futures))
seen["strategies"] = {}
for name, ex, futures in sent:
    value, *shells = [future.result(60) for future in futures]
    seen["strategies"][name] = value, [shell["stdout"] for shell in shells]
    ex.shutdown()

sent = []
for chosen in (["JSONData"], ["DillDataBase64"], ["AllDataStrategies"], ["JSONData", DATA[0]]):
    ex = executor(result_serializers=[getattr(serialize, name) for name in chosen])
    sent.append((",".join(chosen), ex, ex.submit(area, 2), ex.submit(ShellFunction("echo 1"))))
seen["result_serializers"] = {}
for name, ex, future, shell in sent:
    future.result(60)
    error = shell.exception(60)
    kind = str(error) if error else type(shell.result()).__name__
    text = client._compute_web_client.v2.get_task(future.task_id)["result"]
    seen["result_serializers"][name] = [text[:2], kind]
    ex.shutdown()

area_id = client.register_function(area, description="of a rectangle")
batch = client.create_batch(result_serializers=["globus_compute_sdk.serialize.JSONData"])
for width in range(20):
    batch.add(area_id, (width,), {"height": 3})
shell_id = client.register_function(ShellFunction("echo {x}", return_dict=True))
batch.add(shell_id, (), {"x": "batched"})
batch.add(client.register_function(fail), ("in a batch",))
answer = client.batch_run(ENDPOINT, batch)
(fail_task,) = answer["tasks"][next(f for f in answer["tasks"] if f not in (area_id, shell_id))]
lone = client.run(4, endpoint_id=ENDPOINT, function_id=area_id)
every = [*answer["tasks"][area_id], lone]
deadline = time.monotonic() + 90
while True:
    results = client.get_batch_result([*every, *answer["tasks"][shell_id], fail_task])
    if not any(result["pending"] for result in results.values()):
        break
    if time.monotonic() > deadline:
        sys.exit(f"still pending: {results}")
    time.sleep(0.2)
seen["batch"] = [results[task]["result"] for task in every]
seen["batch_shell"] = results[answer["tasks"][shell_id][0]]["result"]["stdout"]
seen["batch_failed"] = fail_task in results
fresh = Client()  # it has no results in its memory
seen["get_result"] = fresh.get_result(lone)
seen["get_task"] = fresh.get_task(lone)["status"]
try:
    fresh.get_result(fail_task)
except Exception as error:
    seen["get_result_failed"] = [type(error).__name__, str(error)]
function = client.get_function(area_id)
seen["get_function"] = [function["function_uuid"] == area_id, function["function_name"]]
client.delete_function(area_id)
seen["endpoints"] = [endpoint["uuid"] for endpoint in client.get_endpoints()]
seen["status"] = client.get_endpoint_status(ENDPOINT)["status"]
seen["metadata"] = client.get_endpoint_metadata(ENDPOINT)["uuid"]
seen["allowed"] = client.get_allowed_functions(ENDPOINT).get("restricted")
unknown = "11111111-1111-4111-8111-111111111111"
try:
    client.run(1, endpoint_id=unknown, function_id=cube)
except Exception as error:
    seen["unknown_endpoint"] = str(error)
print(json.dumps(seen))
