"""Backup and restore of an SQLite database, by the commands of docs/deployment.md."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from tests.service.conftest import Peer, Rest
from tests.service.test_results import result

from flux_endpoint.cli.service import service
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from waiting import until

PAGE = Path(__file__).parents[2] / "docs/deployment.md"


def documented() -> tuple[str, str]:
    """Return the page's commands that make a backup of SQLite, and that restore it."""
    section = PAGE.read_text().partition("\n### SQLite\n")[2].partition("\n### ")[0]
    make, restore = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return make, restore


@pytest.mark.rabbitmq
def test_all_results_are_there_after_a_restore(
    live_settings: ServiceSettings,
    token_of: Callable[[str], dict[str, str]],
    peer: Peer,
    tmp_path: Path,
    database_url: str,
) -> None:
    if not database_url.startswith("sqlite"):
        pytest.skip("the commands for PostgreSQL are its own")
    path, backup = Path(database_url.removeprefix("sqlite:///")), tmp_path / "backup.db"
    environment = {
        **os.environ,
        "DATABASE": str(path),
        "BACKUP": str(backup),
        "FLUX_ENDPOINT_HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    make, restore = documented()
    token = token_of("ada")
    with TestClient(create_app(live_settings), headers=token) as client:
        rest = Rest(client)
        endpoint_id = rest.register_endpoint()
        _, before = rest.submit(endpoint_id, 50)
        for task_id in before:
            peer.send_result(endpoint_id, result(task_id, f"00\n{task_id}\n"))
        for each in before:
            until(lambda each=each: rest.status(each)["status"] == "success")  # type: ignore[misc]
        is_over = threading.Event()
        during: list[str] = []

        def go_on() -> None:
            for _ in range(200):  # a user has 2,000 requests
                if is_over.is_set():
                    break
                _, ids = rest.submit(endpoint_id, 5)
                for each in ids:
                    peer.send_result(endpoint_id, result(each))
                during.extend(ids)

        others = threading.Thread(target=go_on)
        others.start()
        try:
            until(lambda: bool(during))
            subprocess.run(["sh", "-ec", make], env=environment, check=True, timeout=120)
        finally:
            is_over.set()
            others.join()
        _, after = rest.submit(endpoint_id, 1)
    assert backup.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("PRAGMA foreign_key_check").fetchall() == []
        assert copy.execute("PRAGMA auto_vacuum").fetchone() == (2,)

    subprocess.run(["sh", "-ec", restore], env=environment, check=True, timeout=120)
    assert path.with_name("service.db.before").exists()
    with TestClient(create_app(live_settings), headers=token) as client:
        rest = Rest(client)
        for each in before:
            status = rest.status(each)
            assert (status["status"], status["result"]) == ("success", f"00\n{each}\n")
        assert rest.status(after[0])["code"] == "TASK_NOT_FOUND"
        # The service goes on with what it has.
        _, (new,) = rest.submit(endpoint_id)
        peer.send_result(endpoint_id, result(new))
        until(lambda: rest.status(new)["status"] == "success")


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(service, ["backup", *arguments])
    assert done.exception is not None
    return str(done.exception)


def test_a_backup_replaces_nothing_and_names_what_is_wrong(
    tmp_path: Path, database_url: str, database: object
) -> None:
    del database
    existing = tmp_path / "existing"
    existing.write_text("mine")
    missing = f"sqlite:///{tmp_path}/missing.db"
    if database_url.startswith("sqlite"):
        said = refused(str(existing), "--database-url", database_url)
        assert said == f"no backup, {existing}: it exists already"
        nowhere = tmp_path / "no/such"
        assert str(nowhere.parent) in refused(str(nowhere), "--database-url", database_url)
    assert existing.read_text() == "mine"
    assert "there is no database" in refused(str(tmp_path / "b"), "--database-url", missing)
    other = "postgresql://nobody@127.0.0.1/none"
    assert "copy it with pg_dump" in refused(str(tmp_path / "b"), "--database-url", other)
    assert not [each for each in tmp_path.iterdir() if "partial" in each.name]


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    path, copy = tmp_path / "service.db", tmp_path / "copy"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 100)
        connection.commit()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 32_768)
    said = refused(str(copy), "--database-url", f"sqlite:///{path}")
    assert said == "no backup: database disk image is malformed"
    assert not copy.exists()
