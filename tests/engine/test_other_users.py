"""A job of another user can't be followed, and the error says that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flux_endpoint.protocol.jobid import format_jobid, parse_jobid
from foreground import Process

NOBODY = 65534
#: Another user, who may read what we may: this interpreter may be in a directory of ours.
_AS_NOBODY = [
    "setpriv",
    *(f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]
#: Submits a job as the instance's owner, lets everybody connect, ends with its standard input.
_INITIAL_PROGRAM = """
directory=$(dirname "${FLUX_URI#local://}")
chmod 711 "$directory"
echo "$FLUX_URI"
flux submit sleep 1000
cat > /dev/null
flux cancel --all
"""
_GUEST = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from engine_world import World
world = World("flux", Path(sys.argv[1]), min_nodes=0)
end = world.end(world.attach(int(sys.argv[2])))
print(end.code, end.text, flush=True)
world.stop()
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """An instance that lets guests in, and the id of its owner's job."""
    config = tmp_path / "guests.toml"
    config.write_text("[access]\nallow-guest-user = true\n")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))}
    command = ["flux", "start", f"--config-path={config}", "sh", "-c", _INITIAL_PROGRAM]
    with Process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        uri, jobid = process.stdout.readline().strip(), process.stdout.readline().strip()
        yield uri, parse_jobid(jobid)
        process.stdin.close()
        process.wait(timeout=60)


@pytest.fixture
def guests_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp())  # pytest's own are closed to others
    os.chown(directory, NOBODY, NOBODY)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.flux
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_users_job_is_refused_by_name(instance, guests_directory):
    uri, jobid = instance
    program = [*_AS_NOBODY, sys.executable, "-c", _GUEST]
    arguments = [str(guests_directory), str(jobid), str(Path(__file__).parent)]
    said = subprocess.run(
        [*program, *arguments],
        env={**os.environ, "FLUX_URI": uri, "HOME": str(guests_directory)},
        cwd="/",
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.stdout.strip() == (
        f"EngineRefusedTask can't follow job {format_jobid(jobid)}: it is another user's, and only "
        "its owner, or the owner of the Flux instance, may"
    ), said.stderr
