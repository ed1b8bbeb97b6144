"""What an account may do, by the rules alone."""

from __future__ import annotations

import uuid
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.service.access.passwords import Passwords
from flux_endpoint.service.access.rules import Resource, Topic, may
from flux_endpoint.service.store.accounts import Account, AccountKind, parse_account

TOKEN = "0123456789ab"
ME, OTHER, GROUP, CLIENT = (str(uuid.UUID(int=n, version=4)) for n in range(1, 5))
USER = Account(AccountKind.USER, ME, TOKEN)
ENDPOINT = Account(AccountKind.ENDPOINT, ME, TOKEN)

ALLOWED = {
    USER: {
        Resource("queue", f"tg.{GROUP}", "read"),
        Resource("queue", f"tg.{GROUP}.{CLIENT}", "read"),
        Resource("queue", f"ev.{GROUP}", "read"),
        Resource("queue", f"ev.{GROUP}.{CLIENT}", "read"),
    },
    ENDPOINT: {
        Resource("queue", f"{ME}.tasks", "read"),
        Resource("queue", f"{ME}.commands", "read"),
        *(Resource("exchange", name, "write") for name in ("results", "heartbeats", "events")),
        *(Topic(name, f"{ME}.{name}", "write") for name in ("results", "heartbeats", "events")),
    },
}

NAMES = (
    "",
    "results",
    "heartbeats",
    "events",
    "tasks",
    "commands",
    "task-groups",
    "live-output",
    "dead-letters",
    "amq.default",
    "amq.topic",
    "amq.rabbitmq.trace",
    *(f"{id_}.{kind}" for id_ in (ME, OTHER) for kind in ("tasks", "commands", "results")),
    f"tg.{GROUP}",
    f"tg.{GROUP}.{CLIENT}",
    f"ev.{GROUP}",
    f"ev.{GROUP}.{CLIENT}",
    f"tg.{OTHER}",
    f"tg.{GROUP}\n",
    f"tg.{GROUP}.",
    f"tg.{GROUP.upper()}",
    f"tg.{GROUP}.{CLIENT}.x",
    f"xtg.{GROUP}",
    f"tg.{OTHER}.{GROUP}",
)
KEYS = (*NAMES, f"{ME}.heartbeats", f"{ME}.events", f"{ME}.results.x", "#", "*.results")


def owns(group: str) -> bool:
    return group == GROUP


@pytest.mark.parametrize("account", [USER, ENDPOINT], ids=["user", "endpoint"])
def test_unlisted_permissions_are_refused(account: Account) -> None:
    permissions = ("configure", "write", "read", "")
    uses = {Resource(*use) for use in product(("queue", "exchange", "topic"), NAMES, permissions)}
    topics = {Topic(*use) for use in product(NAMES, KEYS, permissions)}
    allowed = {use for use in uses | topics if may(account, use, owns)}
    assert allowed == ALLOWED[account]


def test_only_the_owner_of_a_group_may_read_its_queue() -> None:
    use = Resource("queue", f"tg.{GROUP}", "read")
    assert not may(USER, use, lambda _: False)


@given(st.text())
def test_other_names_are_not_accounts(name: str) -> None:
    assert parse_account(name) is None


@pytest.mark.parametrize(
    "name", [f"{USER.name}\n", USER.name.upper(), USER.name[:-1], f"x-{ME}-{TOKEN}", f"u-{ME}"]
)
def test_nearly_correct_names_are_not_accounts(name: str) -> None:
    assert parse_account(USER.name) == USER
    assert parse_account(ENDPOINT.name) == ENDPOINT
    assert parse_account(name) is None


def test_passwords_differ_by_name_and_by_key() -> None:
    one, other = Passwords(b"one"), Passwords(b"other")
    made = [each.of(account.name) for each in (one, other) for account in (USER, ENDPOINT)]
    assert len(set(made)) == 4
    assert one.is_right(USER.name, made[0])
    for wrong in ("", made[1], made[2], made[0] + "x", "ü"):
        assert not one.is_right(USER.name, wrong)
