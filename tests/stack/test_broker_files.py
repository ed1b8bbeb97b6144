import base64
import hashlib
import json
import socket
from pathlib import Path

import pytest

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.stack import broker_files, installation, ports
from flux_endpoint.stack.ports import free_ports, is_free


def test_a_password_hash_is_the_salt_and_the_sha256_of_salt_and_password():
    decoded = base64.b64decode(broker_files.password_hash("secret", b"\x01\x02\x03\x04"))
    assert decoded[:4] == b"\x01\x02\x03\x04"
    assert decoded[4:] == hashlib.sha256(b"\x01\x02\x03\x04secret").digest()


def test_no_password_is_written_in_the_clear_where_the_broker_reads(tmp_path):
    secrets = broker_files.load_secrets(tmp_path)
    assert secrets["service"] not in json.dumps(broker_files.definitions(secrets["service"]))


def test_secrets_are_private_different_and_stay(tmp_path):
    secrets = broker_files.load_secrets(tmp_path)
    assert set(secrets) == {"service", "authorization"}
    assert len(set(secrets.values())) == 2
    assert broker_files.load_secrets(tmp_path) == secrets
    assert (tmp_path / "passwords.json").stat().st_mode & 0o777 == 0o600


def test_name_and_ports_stay_while_the_ports_are_free(tmp_path, kept_ports):
    first = broker_files.load_identity(tmp_path)
    assert vars(first) == {"name": first.name, **kept_ports}
    assert broker_files.load_identity(tmp_path) == first


def test_a_taken_port_is_replaced_and_the_name_kept(tmp_path, kept_ports):
    first = broker_files.load_identity(tmp_path)
    with socket.create_server(("127.0.0.1", first.amqp_port)):
        second = broker_files.load_identity(tmp_path)
    assert second.name == first.name
    assert second.amqp_port != first.amqp_port


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, content):
    (tmp_path / "node.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"node\.json .*remove it"):
        broker_files.load_identity(tmp_path)


def test_free_ports_are_different_and_free():
    assert len(set(free_ports(5))) == 5
    # Another program may take one of them meanwhile, but not each time.
    assert any(all(map(is_free, free_ports(5))) for _ in range(10))


def test_free_ports_are_none_that_the_kernel_gives_to_connections():
    first, last = map(int, Path(ports._EPHEMERAL_FILE).read_text().split())
    assert all(not first <= port <= last for port in free_ports(100))


@pytest.mark.parametrize("count", [0, 1, 2, 12, 360])
def test_all_candidate_ports_are_tried_and_each_once(count):
    candidates = [*range(20_000, 20_000 + count)]
    tried = [[*ports._in_random_order(candidates)] for _ in range(20)]
    assert all(sorted(each) == candidates for each in tried)
    assert count < 12 or len({tuple(each) for each in tried}) > 1


@pytest.mark.parametrize("content", ["1024\t65535\n", "", None])
def test_free_ports_are_found_where_the_kernel_may_give_any(monkeypatch, tmp_path, content):
    file = tmp_path / "ip_local_port_range"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(ports, "_EPHEMERAL_FILE", str(file))
    assert len(set(free_ports(5))) == 5


def test_a_port_with_a_listener_is_not_free():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_free(listener.getsockname()[1])


def test_without_rabbitmq_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(installation, "_USUAL", ())
    with pytest.raises(ConfigurationError, match="apt-get install rabbitmq-server"):
        installation.find_rabbitmq({"PATH": str(tmp_path)})


def test_rabbitmq_home_comes_first(tmp_path, monkeypatch):
    sbin = tmp_path / "rabbitmq" / "sbin"
    sbin.mkdir(parents=True)
    for name in ("rabbitmq-server", "rabbitmqctl", "rabbitmq-env", "epmd"):
        (sbin / name).write_text("#!/bin/sh\n")
        (sbin / name).chmod(0o755)
    found = installation.find_rabbitmq({"RABBITMQ_HOME": str(sbin.parent), "PATH": str(sbin)})
    assert found.server == sbin / "rabbitmq-server"
    assert found.ctl == sbin / "rabbitmqctl"


def test_a_packagers_wrapper_is_not_taken_for_the_server(tmp_path, monkeypatch):
    monkeypatch.setattr(installation, "_USUAL", ())
    wrapper = tmp_path / "rabbitmq-script-wrapper"
    wrapper.write_text("#!/bin/sh\n")
    wrapper.chmod(0o755)
    (tmp_path / "rabbitmq-env").write_text("")
    (tmp_path / "rabbitmq-server").symlink_to(wrapper)
    with pytest.raises(ConfigurationError, match="isn't installed"):
        installation.find_rabbitmq({"PATH": str(tmp_path)})
