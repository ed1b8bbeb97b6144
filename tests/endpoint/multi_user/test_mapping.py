"""Which user runs tasks as which account."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flux_endpoint.endpoint.multi_user.accounts import Accounts, LocalAccount, NoAccountError
from flux_endpoint.endpoint.multi_user.config import (
    EXAMPLE_MAPPING,
    MultiUserConfig,
    MultiUserFiles,
)
from flux_endpoint.endpoint.multi_user.initial import initial_files
from flux_endpoint.endpoint.multi_user.mapping import IdentityMapping
from flux_endpoint.errors import ConfigurationError

ADA = {"sub": "1c6d", "username": "ada@example.org", "name": "ada@example.org", "email": None}


def mapping(*rules: dict[str, Any]) -> IdentityMapping:
    content = [{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": list(rules)}]
    return IdentityMapping(json.dumps(content), source="mapping.json")


def rule(match: str, output: str, source: str = "{username}", **more: Any) -> dict[str, Any]:
    return {"source": source, "match": match, "output": output, **more}


@pytest.mark.parametrize(
    ("given", "account"),
    [
        (rule("ada@example.org", "ada"), "ada"),
        (rule("([a-z]+)@example\\.org", "u_{0}"), "u_ada"),
        (rule("([a-z]+)@(example)\\.org", "{1}.{0}"), "example.ada"),
        (rule("ada", "ada"), None),  # the whole name must match
        (rule("da@example.org", "ada"), None),
        (rule("ADA@EXAMPLE.ORG", "ada"), None),
        (rule("ADA@EXAMPLE.ORG", "ada", ignore_case=True), "ada"),
        (rule("ada@exampleXorg", "ada"), None),
        (rule("ada@example.org", "ada", literal=True), "ada"),
        (rule(".*", "ada", literal=True), None),
        (rule("1c6d", "ada", source="{sub}"), "ada"),
        (rule("(.*)", "ada", source="{email}"), None),  # this user has none
        (rule("1c6d:ada@.*", "ada", source="{sub}:{username}"), "ada"),
        (rule("(ada)?(bob)?@.*", "{1}"), None),  # an empty account is none
    ],
)
def test_a_rule_maps_the_users_it_matches(given, account):
    assert next(mapping(given).accounts([ADA]), None) == account


def test_the_first_matching_rule_counts():
    known = mapping(rule("nobody", "x"), rule("ada@.*", "first"), rule("ada@.*", "second"))
    assert list(known.accounts([ADA])) == ["first", "second"]


def test_a_line_break_does_not_end_a_name():
    assert not list(mapping(rule("root", "root")).accounts([{**ADA, "username": "root\n"}]))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "mapping.json: not valid JSON"),
        ("{}", "the whole: "),
        ('[{"DATA_TYPE": "external_identity_mapping#1.0.0", "mappings": []}]', "[0].DATA_TYPE: "),
        (json.dumps([{"mappings": [rule("a", "b")]}]), "[0].DATA_TYPE: Field required"),
    ],
)
def test_a_file_of_another_form_is_refused(text, error):
    with pytest.raises(ConfigurationError) as caught:
        IdentityMapping(text, source="mapping.json")
    assert error in str(caught.value)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (rule("(", "a"), "[0].mappings[0].match: no regular expression"),
        (rule("a", "{0}"), "[0].mappings[0].output: {0} is a group that `match` does not have"),
        (rule("a", "b", source="{user}"), "[0].mappings[0].source: no field is called 'user'"),
        (rule("a", "b", typo=True), "[0].mappings[0].typo: Extra inputs"),
        (rule("a", 5), "[0].mappings[0].output: Input should be a valid string"),  # type: ignore[arg-type]
    ],
)
def test_an_invalid_rule_is_refused_with_its_place(given, error):
    with pytest.raises(ConfigurationError) as caught:
        mapping(given)
    assert error in str(caught.value)


def test_the_example_is_valid():
    text = initial_files("lab", None, is_root=True)[EXAMPLE_MAPPING]
    assert list(IdentityMapping(text, source="example").accounts([ADA])) == ["ada"]


def account(name: str, **what: Any) -> LocalAccount:
    about = {"uid": 5000, "gid": 5000, "groups": (5000,), "home": "/h", "shell": "/bin/sh"}
    return LocalAccount(name, full_name="", **{**about, **what})


@pytest.fixture
def known(monkeypatch):
    """The accounts of the machine; this process is root's."""
    found = {
        each.name: each
        for each in (
            account("ada"),
            account("root", uid=0, gid=0),
            account("wheel", gid=0),
            account("daemon", uid=2, gid=2),
            account("locked", shell="/usr/sbin/nologin"),
        )
    }
    monkeypatch.setattr(LocalAccount, "named", staticmethod(found.get))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return found


def mapped(name: str) -> LocalAccount:
    known = mapping(rule("ada@.*", name))
    return Accounts("owner", [], 1000).account("ada@example.org", [ADA], known)


def test_root_starts_processes_as_the_mapped_account(known):
    assert mapped("ada") is known["ada"]
    assert mapped("ada").identity() == {"user": 5000, "group": 5000, "extra_groups": (5000,)}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("root", "runs no tasks: its uid 0 is less than 1000"),
        ("wheel", "its group is root's"),
        ("daemon", "its uid 2 is less than 1000"),
        ("locked", "its shell is /usr/sbin/nologin"),
        ("nobody-here", "is mapped to 'nobody-here', which does not exist there"),
    ],
)
def test_accounts_that_run_no_tasks(known, name, reason):
    with pytest.raises(NoAccountError) as caught:
        mapped(name)
    assert reason in str(caught.value)


def test_an_account_that_does_not_exist_leaves_the_choice_to_the_next_rule(known):
    rules = mapping(rule("ada@.*", "gone"), rule("ada@.*", "ada"))
    found = Accounts("owner", [], 1000).account("ada@example.org", [ADA], rules)
    assert found is known["ada"]


def test_root_never_runs_tasks_as_itself(known):
    with pytest.raises(NoAccountError, match="root runs no tasks"):
        Accounts("owner", ["*"], 1000).account("owner", [ADA], None)


def test_without_root_tasks_run_as_the_own_account_for_those_who_may(known, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 5000)
    monkeypatch.setattr(LocalAccount, "own", lambda: known["ada"])
    for user, users in (("owner", []), ("bob", ["bob"]), ("carol", ["*"])):
        assert Accounts("owner", users, 1000).account(user, [ADA], None) is known["ada"]
    with pytest.raises(NoAccountError, match="user 'carol' is not among those"):
        Accounts("owner", ["bob"], 1000).account("carol", [ADA], None)
    assert mapped("ada").identity() == {}
    monkeypatch.setattr(os, "geteuid", lambda: 5001)
    with pytest.raises(NoAccountError, match="only root can start an endpoint for it"):
        mapped("ada")


def test_an_accounts_variables_can_not_be_replaced():
    made = account("ada").environment({"HOME": "/other", "PATH": "/opt/bin", "SITE": "lab"})
    assert made["HOME"] == "/h"
    assert (made["PATH"], made["SITE"], made["USER"]) == ("/opt/bin", "lab", "ada")
    assert set(made) == {"PATH", "LANG", "SITE", "HOME", "LOGNAME", "SHELL", "USER"}


def files(tmp_path: Path, **config: Any) -> MultiUserFiles:
    for name, text in initial_files("lab", None, is_root=False).items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return MultiUserFiles(tmp_path, MultiUserConfig(multi_user=True, **config))


def test_files_that_others_can_write_are_not_read(tmp_path):
    made = files(tmp_path, identity_mapping_config_path=EXAMPLE_MAPPING)
    readers = {
        made.template_path: made.template,
        made.schema_path: made.schema,
        made.environment_path: made.environment,
        made.mapping_path: made.mapping,
    }
    for path, read in readers.items():
        read()
        path.chmod(0o620)
        with pytest.raises(ConfigurationError, match=r"other accounts can write .*: chmod go-w"):
            read()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("A: [1]", "A: must be text"),
        ("- A", "must be a block of `key: value` lines"),
        ("A: 'x", "not valid YAML"),
        ("HOME: /x\nUSER: y", "HOME, USER can't be set here"),
    ],
)
def test_an_invalid_environment_is_refused(tmp_path, text, error):
    made = files(tmp_path)
    made.environment_path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        made.environment()
    assert error in str(caught.value)


def test_the_environment_has_texts_and_numbers(tmp_path):
    made = files(tmp_path)
    assert made.environment() == {}
    made.environment_path.write_text("A: 1\nB: x\nC: null\n")
    assert made.environment() == {"A": "1", "B": "x"}
