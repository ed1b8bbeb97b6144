"""The official SDK's own unit tests hold for ours in its place, but for the listed differences.

They are read from a source tree of the official packages, which `GLOBUS_COMPUTE_SOURCE` names: the
released packages have no unit tests. `official_aliases.py` gives ours the official names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.interop.official_differences import DIFFERENCES, NOT_RUN, difference_of, plain

FILES = (
    "test_batch.py",
    "test_error_types.py",
    "test_executor.py",
    "test_mpi_functions.py",
    "test_serialization.py",
    "test_shell_functions.py",
)
HERE = Path(__file__).parent
#: The official packages' dependencies come after everything of ours.
PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); import pytest; sys.exit(pytest.main())"

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def outcomes(
    official_source: Path, official_python: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The worst outcome of each test, by its id."""
    source = official_source
    directory = tmp_path_factory.mktemp("official-unit-tests")
    report, settings = directory / "report", directory / "pytest.ini"
    settings.write_text("[pytest]\n")
    question = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([official_python, "-c", question], text=True).strip()
    options = ["-p", "official_aliases", "-p", "no:cacheprovider", "-q", "-W", "ignore"]
    # Native: to look up each frame's source, Python 3.11 may fail in threads with a SystemError.
    options += ["--tb", "native", "-c", str(settings), "--rootdir", str(source), "--timeout", "300"]
    for test in NOT_RUN:
        options += ["--deselect", f"tests/unit/{test}"]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, packages, *options]
        + [str(source / "tests" / "unit" / file) for file in FILES],
        check=False,
        cwd=directory,
        env={
            **os.environ,
            "OFFICIAL_TESTS_REPORT": str(report),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{HERE}{os.pathsep}{source}",
        },
        capture_output=True,
        text=True,
    )
    assert report.exists(), run.stdout + run.stderr
    found: dict[str, dict[str, Any]] = {}
    for line in map(json.loads, report.read_text().splitlines()):
        name = plain(line["test"])
        if found.get(name, {}).get("outcome") != "failed":
            found[name] = line
    assert run.returncode in {0, 1}, run.stdout + run.stderr  # it went through to its end
    return found


def test_every_file_was_read(outcomes: dict[str, dict[str, Any]]) -> None:
    assert {name.partition("::")[0] for name in outcomes} == set(FILES)
    assert len(outcomes) > 500


def test_unlisted_official_tests_pass(outcomes: dict[str, dict[str, Any]]) -> None:
    failed = {
        name: line["text"]
        for name, line in outcomes.items()
        if line["outcome"] == "failed" and not difference_of(name)
    }
    assert failed == {}


def test_listed_official_tests_fail(outcomes: dict[str, dict[str, Any]]) -> None:
    passed = {
        name
        for name, line in outcomes.items()
        if line["outcome"] == "passed" and difference_of(name)
    }
    assert passed == set(), "these hold now: take them off the list"
    names = {*outcomes, *(name.partition("[")[0] for name in outcomes)}
    assert DIFFERENCES.keys() - names == set(), "there are no such tests"
