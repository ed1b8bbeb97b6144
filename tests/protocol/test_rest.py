"""REST bodies: ids in one spelling, unknown keys ignored, wrong ones named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from flux_endpoint.protocol.rest import (
    RegisterEndpoint,
    RegisterFunction,
    SubmitBatch,
    UuidText,
    VersionAnswer,
)

FUNCTION_ID = "0d2c1d77-9a13-4b0c-8bd8-6ab1aabbf3a7"


class Holder(BaseModel):
    id: UuidText


@given(st.uuids())
def test_every_spelling_of_a_uuid_becomes_lower_case_with_dashes(uuid):
    canonical = str(uuid)
    for spelling in (canonical, canonical.upper(), uuid.hex, f"{{{canonical}}}", uuid.urn):
        assert Holder(id=spelling).id == canonical


@pytest.mark.parametrize(
    "text", ["", "x", FUNCTION_ID[:-1], FUNCTION_ID + "0", "tg." + FUNCTION_ID]
)
def test_a_malformed_uuid_is_refused_with_the_text_and_the_field(text):
    with pytest.raises(ValidationError, match="is not a UUID") as caught:
        Holder(id=text)
    assert caught.value.errors()[0]["loc"] == ("id",)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("value", [5, None, [FUNCTION_ID], True])
def test_a_uuid_that_is_no_text_is_refused(value):
    with pytest.raises(ValidationError):
        Holder.model_validate({"id": value})


def test_the_ids_of_a_submission_are_normalized_too():
    batch = SubmitBatch(tasks={FUNCTION_ID.upper(): ["x"]}, task_group_id=FUNCTION_ID.upper())
    assert list(batch.tasks) == [FUNCTION_ID]
    assert batch.task_group_id == FUNCTION_ID


def test_a_submission_needs_at_least_one_function():
    with pytest.raises(ValidationError, match="tasks"):
        SubmitBatch(tasks={})


def test_unknown_keys_are_ignored_so_that_a_newer_client_can_talk_to_an_older_service():
    batch = SubmitBatch.model_validate({"tasks": {FUNCTION_ID: ["x"]}, "colour": "red"})
    assert not hasattr(batch, "colour")


def test_a_function_registration_of_the_official_client_is_accepted():
    body = {
        "function_name": "area",
        "function_code": "6\n01\nabc",
        "serialized": True,
        "description": "Area.",
        "meta": {"python_version": "3.11.7", "sdk_version": "4.19.0", "serde_identifier": "01"},
        "ha_endpoint_id": FUNCTION_ID,
    }
    assert RegisterFunction.model_validate(body).function_name == "area"


@pytest.mark.parametrize("name", ["", "x" * 257])
def test_empty_and_too_long_names_are_refused(name):
    with pytest.raises(ValidationError):
        RegisterFunction(function_name=name, function_code="x")
    with pytest.raises(ValidationError):
        RegisterEndpoint(endpoint_name=name)


def test_the_version_answer_has_the_keys_that_the_official_client_insists_on():
    assert VersionAnswer().model_dump().keys() >= {"api", "min_sdk_version", "min_ep_version"}
