"""What a site is to its tests: a home, an environment, Flux instances."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest

from flux_endpoint.endpoint import lifecycle
from foreground import Process
from waiting import until

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "flux_plugins"
COMMAND = [sys.executable, "-m", "flux_endpoint"]
#: Seconds after which something that should happen counts as not happening.
PATIENCE = 60
_numbers = itertools.count()


class Site:
    """A user at a site: `$FLUX_ENDPOINT_HOME`, and nothing else of ours in the environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.home.mkdir(mode=0o700)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))}
        # The command of this installation, as an activated environment has it.
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        self.environment = {**kept, "PATH": path, "FLUX_ENDPOINT_HOME": str(self.home)}

    def log_in(self, url: str, token: str) -> None:
        path = self.home / "credentials.json"
        path.write_text(json.dumps({"service_url": url, "token": token}))
        path.chmod(0o600)

    def run(
        self, *command: str, fails: bool = False, uri: str | None = None, **environment: str
    ) -> str:
        """Run a command; return what it prints, on both streams if it is to fail."""
        env = {**self.environment, **environment}
        if uri is not None:
            env["FLUX_URI"] = uri
        done = subprocess.run(
            command,
            env=env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert (done.returncode != 0) == fails, (done.args, done.stdout, done.stderr)
        return done.stdout + done.stderr if fails else done.stdout

    def endpoint(self, *arguments: str, **options: str) -> str:
        """Run `flux-endpoint …`."""
        return self.run(*COMMAND, *arguments, **options)  # type: ignore[arg-type]

    def configure(self, name: str, **settings: object) -> Path:
        """Make an endpoint; return its directory."""
        self.endpoint("configure", name)
        directory = self.home / "endpoints" / name
        if settings:
            (directory / "config.yaml").write_text(json.dumps(settings))
        return directory

    def endpoint_id(self, name: str) -> str:
        text = (self.home / "endpoints" / name / "endpoint.json").read_text()
        return str(json.loads(text)["endpoint_id"])

    def status(self, name: str) -> str:
        """Return an endpoint's status as `list` has it."""
        listed = json.loads(self.endpoint("list", "--json"))
        return next(str(entry["status"]) for entry in listed if entry["name"] == name)

    def wait_for(self, name: str, status: str) -> None:
        """Wait until `list` has this status of an endpoint; asked without a command's start."""

        def reached() -> bool:
            found = {each.name: each.status for each in lifecycle.list_endpoints()}
            return found[name] == status

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FLUX_ENDPOINT_HOME", str(self.home))
            until(reached, PATIENCE)

    @contextmanager
    def instance(
        self, config: str = "", *, size: int = 1, options: Sequence[str] = (), **environment: str
    ) -> Iterator[str]:
        """Run a Flux instance with a configuration in TOML; give its URI."""
        command = ["flux", "start", f"--test-size={size}", *options]
        if config:
            path = self.directory / f"flux-{next(_numbers)}.toml"
            path.write_text(config)
            command.append(f"--config-path={path}")
        command += ["sh", "-c", 'echo "$FLUX_URI"; cat > /dev/null']
        env = {**self.environment, **environment}
        with Process(
            command, stdin=PIPE, stdout=PIPE, text=True, env=env, cwd=self.directory
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            uri = ""
            for line in process.stdout:  # its rc scripts may say something before
                if line.startswith("local://"):
                    uri = line.strip()
                    break
            if not uri:
                pytest.fail(f"`flux start` ended with status {process.wait()}")
            yield uri
            process.stdin.close()
            process.stdout.read()
            assert process.wait(timeout=PATIENCE) == 0
