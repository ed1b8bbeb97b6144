"""The service's REST interface against its own OpenAPI schema, by schemathesis.

    rest.py --seconds 60

A real service is started on a free port, with a RabbitMQ of its own and a user who has an endpoint,
a function and a task. Whatever is asked, no answer may be a server error, and each has to be of the
schema.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from flux_endpoint.service.app import create_app
from flux_endpoint.service.http_protocol import ConnectionLimits
from flux_endpoint.service.server import http_config
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.sockets import listen
from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database
from flux_endpoint.stack.broker import RabbitNode
from flux_endpoint.stack.ports import free_ports

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"
_START_SECONDS = 30.0
#: Seconds beyond those asked for in which schemathesis has to end.
_SLACK = 60.0


@contextmanager
def service(directory: Path) -> Iterator[httpx.Client]:
    """Run a service; yield a client of a user who has one thing of each kind."""
    authorization_url = f"http://127.0.0.1:{free_ports(1)[0]}/secret-of-the-fuzzer"
    with RabbitNode(directory / "broker", authorization_url=authorization_url) as node:
        settings = ServiceSettings(
            database_url=directory / "service.db",
            amqp_url=node.service_url,
            authorization_url=authorization_url,
            management_url=node.management_url,
            max_user_requests=1e6,
        )
        yield from _served(settings)


def _served(settings: ServiceSettings) -> Iterator[httpx.Client]:
    database = Database(settings.database_url)
    database.migrate()
    with database.write() as connection:
        token = users.create_token(connection, "ada")
    database.close()
    listener = listen("127.0.0.1", 0, "", 128)
    server = uvicorn.Server(http_config(create_app(settings), ConnectionLimits()))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not server.started:
            if time.monotonic() > deadline or not thread.is_alive():
                raise RuntimeError("the service did not start")
            time.sleep(0.05)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
            while not client.get("/v3/status").json()["broker"]["connected"]:
                time.sleep(0.2)
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def things(client: httpx.Client) -> dict[str, list[str]]:
    """Make an endpoint, a function and a task; return their ids by the names of parameters."""
    metadata = {"flux_endpoint_version": "1"}
    body: dict[str, object] = {"endpoint_name": "lab", "metadata": metadata}
    endpoint = client.post("/v3/endpoints", json=body).raise_for_status().json()["endpoint_id"]
    body = {"function_name": "f", "function_code": "12\n01\ngASVabcd\n"}
    function = client.post("/v3/functions", json=body).raise_for_status().json()["function_uuid"]
    body = {"tasks": {function: ["8\n00\ngAQp\n8\n00\ngAR9\n"]}}
    submitted = client.post(f"/v3/endpoints/{endpoint}/submit", json=body).raise_for_status().json()
    return {
        "endpoint_id": [endpoint],
        "function_id": [function],
        "task_id": submitted["tasks"][function],
        "group_id": [submitted["task_group_id"]],
    }


def run(seconds: int) -> int:
    """Ask for so long; return the exit code of schemathesis."""
    with tempfile.TemporaryDirectory() as name, service(Path(name)) as client:
        known = things(client)
        schema = client.get("/openapi.json").raise_for_status().json()
        for path in schema["paths"].values():
            for operation in path.values():
                for parameter in operation.get("parameters", ()):
                    if parameter["name"] in known:  # half of the requests reach something
                        value = known[parameter["name"]][0]
                        parameter["schema"] = {"anyOf": [parameter["schema"], {"const": value}]}
        file = Path(name, "openapi.json")
        file.write_text(json.dumps(schema))
        authorization = client.headers["Authorization"]
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "run", str(file),
            "--url", str(client.base_url), "--header", f"Authorization: {authorization}",
            "--checks", CHECKS, "--phases", "coverage,fuzzing", "--max-time", str(seconds),
            "--suppress-health-check", "all", "--continue-on-failure", "--warnings", "off",
        ]  # fmt: skip
        return subprocess.run(command, cwd=name, check=False, timeout=seconds + _SLACK).returncode


def main() -> int:
    """Run for as long as the command line says; return 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    return int(run(parser.parse_args().seconds) != 0)


if __name__ == "__main__":
    sys.exit(main())
