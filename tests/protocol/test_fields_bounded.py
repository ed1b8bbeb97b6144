"""Free-form fields hold only what every reader of JSON, and every database, can hold."""

import json

import pytest

from flux_endpoint.protocol.fields import bounded, readable


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_json_can_not_express_is_refused(text: str) -> None:
    value = json.loads(f'{{"a": [{{"b": {text}}}]}}')
    with pytest.raises(ValueError, match="JSON can't express"):
        bounded(value)


@pytest.mark.parametrize("text", ["NaN", "1e999"])
def test_numbers_that_json_can_not_express_are_null_in_reports(text: str) -> None:
    value = json.loads(f'{{"a": [{text}, 1.5]}}')
    assert readable(bounded(value, reported=True)) == {"a": [None, 1.5]}


def test_every_other_number_is_taken() -> None:
    value = {"a": [1.5, -0.0, 1e308, 5e-324, 2**64 - 1, -(2**63), True, None]}
    assert bounded(value) is value
