"""The systemd units: they run commands that exist, with settings that do, as users that do."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy_files import DEPLOY, Unit, command, read_variables
from flux_endpoint import credentials
from flux_endpoint.cli.exits import ExitCode
from flux_endpoint.endpoint import lifecycle
from flux_endpoint.paths import HOME_VARIABLE
from flux_endpoint.service.server import SHUTDOWN_SECONDS
from flux_endpoint.service.settings import ServiceSettings

SYSTEMD = DEPLOY / "systemd"
SERVICE = SYSTEMD / "system" / "flux-endpoint-service.service"
ENDPOINT = SYSTEMD / "user" / "flux-endpoint@.service"

_PREFIX = "FLUX_ENDPOINT_SERVICE_"


def seconds(text: str) -> float:
    assert text.isdigit(), text
    return float(text)


class TestService:
    @pytest.fixture
    def unit(self):
        return Unit(SERVICE)

    def test_the_unit_runs_an_existing_command(self, unit):
        program, *arguments = shlex.split(unit.one("Service", "ExecStart"))
        assert Path(program).name == "flux-endpoint"
        assert Path(program).is_absolute()
        command(*arguments)

    def test_every_variable_of_the_example_is_a_setting(self, service_variables):
        assert set(read_variables(SYSTEMD / "service.env.example")) <= service_variables

    def test_the_example_is_valid(self):
        given = read_variables(SYSTEMD / "service.env.example")
        assert given.pop(f"{_PREFIX}LOG_FORMAT") in ("text", "json")
        given = {name.removeprefix(_PREFIX).lower(): value for name, value in given.items()}
        assert ServiceSettings(**given).client_amqp_url.startswith("amqps://")

    def test_the_state_is_in_the_units_private_directory(self, unit):
        directory = unit.one("Service", "StateDirectory")
        assert unit.sections["Service"]["Environment"] == [f"{HOME_VARIABLE}=%S/{directory}"]
        assert unit.one("Service", "StateDirectoryMode") == "0700"

    def test_the_user_is_created_by_sysusers(self, unit):
        made = (SYSTEMD / "sysusers.d" / "flux-endpoint.conf").read_text().splitlines()
        assert any(line.split()[:2] == ["u", unit.one("Service", "User")] for line in made)

    def test_the_stop_timeout_is_longer_than_a_shutdown(self, unit):
        assert seconds(unit.one("Service", "TimeoutStopSec")) > SHUTDOWN_SECONDS

    def test_the_unit_is_not_restarted_after_permanent_errors(self, unit):
        codes = {int(code) for code in unit.one("Service", "RestartPreventExitStatus").split()}
        assert codes == {ExitCode.USAGE, ExitCode.PERMISSION}
        assert unit.one("Service", "Restart") == "on-failure"


class TestEndpoint:
    @pytest.fixture
    def unit(self):
        return Unit(ENDPOINT)

    def test_the_unit_can_not_gain_privileges(self, unit):
        for name in ("NoNewPrivileges", "LockPersonality", "RestrictSUIDSGID"):
            assert unit.one("Service", name) == "yes"

    def test_flux_finds_its_sockets(self, unit):
        assert "PrivateTmp" not in unit.sections["Service"]

    def test_the_unit_runs_an_existing_command(self, unit):
        env, program, *arguments = shlex.split(unit.one("Service", "ExecStart"))
        assert (env, program, arguments[-1]) == ("/usr/bin/env", "flux-endpoint", "%i")
        command(*arguments[:-1])

    def test_every_variable_of_the_example_is_read_by_the_endpoint(self):
        assert set(read_variables(SYSTEMD / "user" / "environment.example")) == {
            "PATH",
            credentials.URL_VARIABLE,
            credentials.TOKEN_VARIABLE,
        }

    def test_the_stop_timeout_is_longer_than_a_shutdown(self, unit):
        assert seconds(unit.one("Service", "TimeoutStopSec")) > lifecycle.STOP_TIMEOUT

    def test_only_the_agent_gets_the_stop_signal(self, unit):
        assert unit.one("Service", "KillMode") == "mixed"

    def test_the_unit_is_not_restarted_after_permanent_errors(self, unit):
        codes = {int(code) for code in unit.one("Service", "RestartPreventExitStatus").split()}
        assert codes == {
            ExitCode.USAGE,
            ExitCode.NOT_FOUND,
            ExitCode.PERMISSION,
            ExitCode.CONFIGURATION,
        }


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("path", [SERVICE, ENDPOINT], ids=["system", "user"])
def test_systemd_analyze_accepts_the_units(path, tmp_path):
    name = path.name.replace("@.", "@lab.")
    text = path.read_text()
    # As it is installed: the program has to be there.
    here = str(Path(sys.executable).with_name("flux-endpoint"))
    (tmp_path / name).write_text(re.sub(r"/opt/flux-endpoint/bin/flux-endpoint", here, text))
    manager = ["--user"] if path == ENDPOINT else []
    done = subprocess.run(
        ["systemd-analyze", *manager, "verify", tmp_path / name],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
