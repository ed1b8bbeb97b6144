"""Who starts a command: a shell with closed streams, cron, a strange umask, an odd home."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys

import pytest

COMMAND = shlex.join([sys.executable, "-m", "flux_endpoint"])


def shell(text: str, **options):
    return subprocess.run(
        ["sh", "-c", text],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_replaced_by_dev_null(bare, closed: str):
    done = shell(f"{COMMAND} configure lab {closed}", env=bare.environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert (bare.home / "endpoints" / "lab" / "config.yaml").stat().st_size > 0
    # What fails says so by its exit code.
    assert shell(f"{COMMAND} status {closed}", env=bare.environment).returncode == 78
    assert shell(f"{COMMAND} stop nosuch {closed}", env=bare.environment).returncode == 66


def test_a_closed_stream_is_not_taken_by_the_next_file(bare):
    script = """
import os
from flux_endpoint.cli.process import prepare_process
prepare_process()
print("lost"); print("as well", file=__import__("sys").stderr)
assert {os.readlink(f"/proc/self/fd/{n}") for n in range(3)} == {"/dev/null"}
assert os.open("/", os.O_RDONLY) > 2
"""
    done = shell(f"{shlex.join([sys.executable, '-c', script])} <&- >&- 2>&-", env=os.environ)
    assert done.returncode == 0


def test_an_empty_environment_is_enough(bare):
    home = {"FLUX_ENDPOINT_HOME": str(bare.home)}
    for arguments, status in (("configure lab", 0), ("list", 0), ("status", 78), ("logs lab", 66)):
        done = shell(f"exec {COMMAND} {arguments}", env=home)
        assert done.returncode == status, done
        assert "Traceback" not in done.stderr
    assert "lab" in shell(f"exec {COMMAND} list", env=home).stdout


def test_a_deleted_working_directory_does_not_matter(bare, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    text = f"rmdir {gone}; {COMMAND} configure lab && {COMMAND} list"
    done = shell(text, cwd=gone, env=bare.environment)
    assert done.returncode == 0, done.stderr
    assert "lab" in done.stdout


@pytest.mark.parametrize("umask", ["0777", "0277", "0077", "0000"])
def test_any_umask_keeps_files_usable_by_the_user_and_closed_to_others(bare, umask):
    done = shell(f"umask {umask}; {COMMAND} configure lab", env=bare.environment)
    assert done.returncode == 0, done.stderr
    modes = {each: stat.S_IMODE(each.stat().st_mode) for each in bare.home.rglob("*")}
    modes[bare.home] = stat.S_IMODE(bare.home.stat().st_mode)
    assert {f"{mode:o}" for path, mode in modes.items() if path.is_file()} == {"600"}
    assert modes[bare.home] == modes[bare.home / "endpoints" / "lab"] == 0o700
    assert all(mode & 0o700 == 0o700 for path, mode in modes.items() if path.is_dir())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("new\nline", "control character"),
        ("{{id}}", "which begins what Flux fills in"),
        ("caf\udce9", "not UTF-8"),
        ("/".join(["x" * 200] * 16), "3000 are the most"),
        ("x" * 300, "File name too long"),
    ],
)
@pytest.mark.parametrize("command", ["up", "configure lab", "list", "status", "down", "logs"])
def test_a_home_that_not_every_program_could_use_is_refused(bare, tmp_path, name, reason, command):
    said = bare.err(*command.split(), status=78, FLUX_ENDPOINT_HOME=f"{tmp_path}/{name}")
    assert reason in said
    assert "FLUX_ENDPOINT_HOME" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
