import importlib.util
import json
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ports import reserved_port

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


@contextmanager
def _kept_ports(directory):
    names = ("amqp_port", "dist_port", "epmd_port", "authorization_port", "management_port")
    with ExitStack() as reservations:
        ports = {name: reservations.enter_context(reserved_port()) for name in names}
        (directory / "node.json").write_text(json.dumps(ports))
        yield ports


@pytest.fixture
def kept_ports(tmp_path):
    """Make `tmp_path` the directory of a node whose ports nobody else is given during the test."""
    with _kept_ports(tmp_path) as ports:
        yield ports


@pytest.fixture(scope="session")
def keeping_ports():
    """The same for any directory."""
    return _kept_ports
