"""What `flux-endpoint urgency` takes; tests/end_to_end has what it does."""

from __future__ import annotations

import click
import pytest

from flux_endpoint.cli.urgency import urgency


def parsed(value: str) -> int | None:
    parameter = next(each for each in urgency.params if each.name == "urgency")
    return parameter.process_value(click.Context(urgency), value)


@pytest.mark.parametrize(
    ("value", "urgency"),
    [("0", 0), ("31", 31), ("hold", 0), ("expedite", 31), ("default", None)],
)
def test_an_urgency_is_a_number_or_a_word_of_flux(value: str, urgency: int | None) -> None:
    assert parsed(value) == urgency


@pytest.mark.parametrize("value", ["32", "-1", "high", "1.5", "²", "9" * 5000])
def test_another_urgency_is_refused(value: str) -> None:
    with pytest.raises(click.BadParameter, match="no number from 0 to 31, nor one of hold"):
        parsed(value)
