"""Which service is a stack's own, and which process still runs."""

import os
import subprocess
from types import SimpleNamespace

from flux_endpoint.errors import ServiceUnreachableError
from flux_endpoint.paths import HOME_VARIABLE
from flux_endpoint.stack import credentials
from flux_endpoint.stack.parts import ServicePart
from flux_endpoint.stack.state import StackDirectory, StackState, open_process, start_command


class Programs:
    """Starts nothing; everything is ready at once."""

    def __init__(self):
        self.ports = []

    def start(self, program):
        self.ports.append(int(program.env["FLUX_ENDPOINT_SERVICE_PORT"]))

    def wait_ready(self, *_):
        return None

    def stop(self, *_):
        return None


def test_a_port_where_another_stacks_service_answered_and_ended_is_left_for_the_next(
    tmp_path, monkeypatch
):
    programs = Programs()

    def is_valid(url, _token):
        if url.endswith(f":{programs.ports[0]}"):
            raise ServiceUnreachableError("it has ended")
        return True

    monkeypatch.setattr(credentials, "is_valid", is_valid)
    broker = SimpleNamespace(service_url="", authorization_url="", management_url="")
    service = ServicePart(StackDirectory(tmp_path), programs, broker)
    service.prepare(None, None, "token")
    service.start()
    assert len(set(programs.ports)) == 2
    assert service.port == programs.ports[1]
    assert credentials.load_credentials(tmp_path / "credentials.json") == {
        "service_url": service.url,
        "token": "token",
        "stack_lock": "stack/lock",
    }


def test_a_process_that_has_ended_runs_no_more_though_its_parent_has_not_noticed():
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert open_process(process.pid) is None
    pidfd = open_process(os.getpid())
    assert pidfd is not None
    os.close(pidfd)


def test_the_endpoint_of_up_is_started_by_up_and_the_others_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    assert start_command("local") == "flux-endpoint start local"
    assert not (tmp_path / "stack").exists()
    StackDirectory().save(StackState(endpoint_name="local"))
    assert start_command("local") == "flux-endpoint up"
    assert start_command("other") == "flux-endpoint start other"
    (tmp_path / "stack" / "state.json").write_text("{")
    assert start_command("local") == "flux-endpoint start local"
