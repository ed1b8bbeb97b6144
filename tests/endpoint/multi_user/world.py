"""A service, a multi-user endpoint of ours in a process of its own, and two local accounts."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import yaml

from flux_endpoint import Client, Executor
from waiting import until

PATIENCE = 90.0
SOURCE = Path(__file__).parents[3] / "src"
TEMPLATE = """\
heartbeat_period: 2
engine:
  type: FluxEngine
  executor: {{ executor | default("local") }}
  local_cores_per_node: 2
  max_workers: {{ workers | default(1) }}
  environment:
    PURPOSE: {{ purpose | default("none") }}
    SUBMITTED_WITH: {{ user_runtime.globus_compute_sdk_version }}
stop_when_idle: {{ idle | default(60) }}
shutdown_grace: 0.1
"""
SCHEMA = {
    "properties": {
        "workers": {"type": "integer", "maximum": 4},
        "purpose": {"type": "string"},
        "idle": {"type": "number"},
        "executor": {"enum": ["local", "flux"]},
    },
    "additionalProperties": False,
}


def python_for_everybody(directory: Path) -> str | None:
    """Make a Python with this package that every account can run; `None`: there is none.

    Args:
        directory: an empty directory that every account can enter.
    """
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    base = next(
        (each for each in (sys.executable, f"/usr/bin/python{version}") if _is_public(Path(each))),
        None,
    )
    packages = Path(sysconfig.get_path("purelib"))
    if base is None or not (_is_public(packages) and _is_public(SOURCE)):
        return None
    command = [base, "-m", "venv", "--without-pip", str(directory / "venv")]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        return None
    (own,) = (directory / "venv").glob("lib/python*/site-packages")
    (own / "tests.pth").write_text(f"{SOURCE}\n{packages}\n")
    return str(directory / "venv" / "bin" / "python")


def _is_public(path: Path) -> bool:
    try:
        real = path.resolve(strict=True)
    except OSError:
        return False
    return all(each.stat().st_mode & stat.S_IXOTH for each in (real, *real.parents))


class LocalAccounts:
    """Accounts that `useradd` makes, with a home each, until `remove`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.names: list[str] = []

    def add(self, name: str) -> pwd.struct_passwd:
        home = self._directory / name
        command = ["useradd", "--create-home", "--home-dir", str(home), "--shell", "/bin/bash"]
        subprocess.run([*command, "--user-group", name], check=True, capture_output=True)
        self.names.append(name)
        return pwd.getpwnam(name)

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["userdel", "--remove", name], check=False, capture_output=True)


class MultiUserWorld:
    """A running multi-user endpoint.

    Args:
        url: the service's.
        tokens: tokens of its users, by name; the first is the endpoint's owner.
        python: the Python that runs it.
        directory: a directory that every account can enter.
        files: further files of the endpoint, and changes of `config.yaml` under that name.
    """

    def __init__(
        self, url: str, tokens: dict[str, str], python: str, directory: Path, **config: Any
    ) -> None:
        self.tokens = tokens
        self.url = url
        home = directory / "home"
        self.home = home
        self.path = home / "endpoints" / "lab"
        self.path.mkdir(parents=True, mode=0o700)
        mapping = config.pop("mapping", None)
        content = {"multi_user": True, "heartbeat_period": 1, "public": True, **config}
        if mapping is not None:
            content["identity_mapping_config_path"] = "mapping.json"
            (self.path / "mapping.json").write_text(json.dumps(mapping))
        (self.path / "config.yaml").write_text(yaml.safe_dump(content))
        (self.path / "user_config_template.yaml.j2").write_text(TEMPLATE)
        (self.path / "user_config_schema.json").write_text(json.dumps(SCHEMA))
        (self.path / "user_environment.yaml").write_text("SITE: lab\n")
        for each in self.path.iterdir():
            each.chmod(0o600)
        self._environment = {
            **{key: value for key, value in os.environ.items() if "PYTHON" not in key},
            "FLUX_ENDPOINT_HOME": str(home),
            "FLUX_ENDPOINT_SERVICE_URL": url,
            "FLUX_ENDPOINT_TOKEN": next(iter(tokens.values())),
            "A_SECRET_OF_ROOT": "1",
        }
        self._python = python
        self._log = (directory / "log").open("wb")
        self.process = subprocess.Popen(
            [python, "-P", "-m", "flux_endpoint", "start", "lab"],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
        )
        identity = self.path / "endpoint.json"
        until(lambda: identity.exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()
        self.id = json.loads(identity.read_text())["endpoint_id"]
        client = self.client(next(iter(tokens)))
        until(lambda: client.get_endpoint_status(self.id)["status"] == "online")

    def said(self) -> str:
        return Path(self._log.name).read_text()

    def client(self, user: str) -> Client:
        return Client(self.url, self.tokens[user])

    def executor(self, user: str, **config: Any) -> Executor:
        return Executor(
            endpoint_id=self.id, client=self.client(user), user_endpoint_config=config or None
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `flux-endpoint` as the endpoint's administrator."""
        return subprocess.run(
            [self._python, "-P", "-m", "flux_endpoint", *words],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self._log.close()


def public_directory() -> Path:
    """Make a directory that every account can enter, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix="multi-user-", dir="/var/tmp"))
    directory.chmod(0o755)
    return directory


def remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
