"""flux-core's own tests of its executor hold for `LocalExecutor` in its place.

They are read from a flux-core source tree, which `FLUX_CORE_SOURCE` names.
"""

from __future__ import annotations

import importlib.util
import os
import unittest
from pathlib import Path
from types import ModuleType

import pytest

from flux_endpoint.engine.local import JobException, LocalExecutor, LocalExecutorFuture

TESTS = "t/python/t0023-executor.py"


@pytest.fixture(scope="module")
def upstream(flux_module: ModuleType) -> ModuleType:
    source = os.environ.get("FLUX_CORE_SOURCE")
    if not source:
        pytest.skip(f"not run: set FLUX_CORE_SOURCE to a flux-core source tree, for its {TESTS}")
    path = Path(source, TESTS)
    specification = importlib.util.spec_from_file_location("upstream_executor_tests", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.FluxExecutor = LocalExecutor  # type: ignore[attr-defined]
    module.FluxExecutorFuture = LocalExecutorFuture  # type: ignore[attr-defined]
    module.JobException = JobException  # type: ignore[attr-defined]
    return module


@pytest.mark.flux
@pytest.mark.parametrize("name", ["TestFluxExecutor", "TestFluxExecutorFuture"])
def test_the_upstream_tests_pass(upstream: ModuleType, name: str) -> None:
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(getattr(upstream, name))
    assert suite.countTestCases() > 5
    outcome = unittest.TestResult()
    suite.run(outcome)
    assert outcome.testsRun == suite.countTestCases()
    assert [text for _, text in outcome.failures + outcome.errors] == []
