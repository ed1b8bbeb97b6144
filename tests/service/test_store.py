"""The database: its schema, its transactions, who may open it."""

import stat
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.protocol.rest import RegisterEndpoint
from flux_endpoint.service.store import endpoints, task_groups, tasks, users
from flux_endpoint.service.store.engine import (
    MIGRATIONS,
    Database,
    chunks,
    expected_revision,
    revision_of,
)
from flux_endpoint.service.store.output import TaskOutput, add_output, output_of
from flux_endpoint.service.store.tables import metadata


def test_migrations_lead_to_the_schema(database: Database) -> None:
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_database_of_the_first_release_keeps_what_it_has(database: Database) -> None:
    move_to(database, "0001")
    with database.write() as connection:
        for table, columns, values in FIRST_RELEASE:
            connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({values})"))
    database.migrate()
    with database.read() as connection:
        (task,) = tasks.task_states(connection, "u", ["t"])
        assert (task.status, task.completed_at) == ("success", 2)
        assert task_groups.group_tasks(connection, "g") == ["t"]


def test_an_earlier_release_can_delete_tasks_with_output(database: Database) -> None:
    with database.write() as connection:
        for table, columns, values in FIRST_RELEASE:
            connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({values})"))
        add_output(connection, {"t": TaskOutput("printed", "")})
    with database.write() as connection:
        connection.execute(sa.text("DELETE FROM tasks"))
        assert output_of(connection, ["t"]) == {}


def test_a_migration_can_be_undone(database: Database) -> None:
    move_to(database, "base")
    with database.read() as connection:
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]


def move_to(database: Database, revision: str) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", "flux_endpoint.service:migrations")
    with database.write() as connection:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, revision)


#: Table, columns and values of what a first release may have stored.
FIRST_RELEASE = (
    ("users", "id, name, created_at", "'u', 'ada', 1"),
    ("functions", "id, owner_id, name, code, public, created_at", "'f', 'u', 'f', 'x', false, 1"),
    (
        "endpoints",
        "id, owner_id, name, public, multi_user, metadata, created_at",
        "'e', 'u', 'lab', false, false, '{}', 1",
    ),
    ("task_groups", "id, owner_id, created_at", "'g', 'u', 1"),
    (
        "submissions",
        "id, owner_id, endpoint_id, group_id, create_queue, created_at",
        "'s', 'u', 'e', 'g', true, 1",
    ),
    (
        "tasks",
        "id, submission_id, position, function_id, completed_at, failed, result",
        "'t', 's', 0, 'f', 2, false, '00'",
    ),
)


def test_services_that_start_together_migrate_once(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    failures: list[BaseException] = []

    def migrate(database: Database) -> None:
        try:
            database.migrate()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate, args=(each,)) for each in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with databases[0].read() as connection:
        assert sa.inspect(connection).has_table("tasks")
        versions = connection.execute(sa.text("SELECT count(*) FROM alembic_version"))
        assert versions.scalar() == 1
    for each in databases:
        each.close()


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            users.create_token(connection, "ada")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as connection:
        assert users.list_tokens(connection) == []


def test_writers_take_turns(database: Database) -> None:
    def write() -> None:
        for _ in range(20):
            with database.write() as connection:
                users.create_token(connection, "ada")

    with database.write() as connection:
        users.create_token(connection, "ada")
    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert len(users.list_tokens(connection)) == 81


def test_sqlite_is_durable_fast_and_private(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    database.migrate()
    with database.read() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
        modes = {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    database.close()
    assert pragma == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "synchronous": 1,
        "busy_timeout": 30000,
    }
    assert modes == {0o600}


def test_a_database_may_be_a_path_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "a 'b' #c %20?d=e.db"
    database = Database(path)
    database.migrate()
    database.close()
    assert path.stat().st_size > 0


def test_a_relative_database_is_named_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/missing/service.db"):
        Database("sqlite:///missing/service.db")


def test_an_endpoint_is_registered_again_only_by_its_owner(database: Database) -> None:
    with database.write() as connection:
        for name in ("ada", "eve"):
            users.create_token(connection, name)
        ada, eve = (users.user_id_of(connection, name) for name in ("ada", "eve"))
        mine = RegisterEndpoint(endpoint_name="lab", allowed_functions=[str(uuid.uuid4())])
        assert ada is not None
        assert eve is not None
        assert endpoints.put_endpoint(connection, "e", ada, mine)
        theirs = RegisterEndpoint(endpoint_name="lab", users=["eve"])
        assert not endpoints.put_endpoint(connection, "e", eve, theirs)
        found = endpoints.get_endpoint(connection, "e")
    assert found is not None
    assert (found.owner_id, found.users) == (ada, None)
    assert found.allowed_functions == mine.allowed_functions


def test_tokens_are_kept_as_hashes(database: Database) -> None:
    with database.write() as connection:
        token = users.create_token(connection, "ada")
        stored = connection.execute(sa.text("SELECT hash FROM tokens")).scalar_one()
    assert token not in stored
    assert len(stored) == 64


def test_a_revoked_token_has_no_user(database: Database) -> None:
    with database.write() as connection:
        first, second = (users.create_token(connection, "ada") for _ in range(2))
        by_id = users.list_tokens(connection)[0].id
        assert users.revoke_token(connection, by_id)
        assert not users.revoke_token(connection, by_id)
        assert users.user_by_token(connection, first) is None
        assert users.user_by_token(connection, second) == users.user_by_token(connection, second)
        assert users.revoke_token(connection, second)
        assert users.user_by_token(connection, second) is None


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("nonsense", "can't be parsed"),
        ("mysql://h/d", "mysql"),
        ("sqlite://", "file"),
        ("sqlite:////no/such/directory/service.db", "/no/such/directory/service.db"),
    ],
)
def test_an_unusable_database_url_is_explained(url: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Database(url)


def test_a_file_that_is_no_database_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "service.db"
    path.write_text("this is no database, and longer than a header of one would be" * 20)
    with pytest.raises(ConfigurationError, match=r"service\.db"):
        Database(f"sqlite:///{path}").migrate()


def test_the_last_migration_is_the_revision_that_a_release_expects(tmp_path: Path) -> None:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == expected_revision()
    database = Database(tmp_path / "service.db")
    with database.read() as connection:
        assert revision_of(connection) is None
    database.migrate()
    with database.read() as connection:
        assert revision_of(connection) == expected_revision()
    database.close()


def test_a_database_of_a_later_version_is_explained(database: Database) -> None:
    with database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="9999"):
        database.migrate()


def test_chunks_fit_and_lose_nothing() -> None:
    assert [len(part) for part in chunks(map(str, range(1001)))] == [500, 500, 1]


def test_a_second_database_object_takes_no_locks_from_the_first(tmp_path: Path) -> None:
    """Else another process, the last that it knows of, deletes the log that we go on reading."""
    file = tmp_path / "service.db"
    first = Database(file)
    first.migrate()
    with first.write() as connection:
        token = users.create_token(connection, "ada")
    second = Database(file)
    revoke = [sys.executable, "-m", "flux_endpoint", "service", "token", "revoke", token]
    subprocess.run([*revoke, "--database-url", f"sqlite:///{file}"], check=True)
    for database in (first, second):
        with database.read() as connection:
            assert users.user_by_token(connection, token) is None
        database.close()
