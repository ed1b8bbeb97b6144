import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location(
    "processes_of", Path(__file__).with_name("processes_of.py")
)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)


@pytest.fixture(scope="session")
def processes_of():
    return _module.processes_of


@pytest.fixture(scope="session")
def await_end():
    return _module.await_end
