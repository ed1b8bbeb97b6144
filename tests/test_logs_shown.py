"""Values from others are shown without control characters, in logs and on terminals."""

from __future__ import annotations

import logging

import pytest
from pydantic import ValidationError

from flux_endpoint.logs import message_of
from flux_endpoint.protocol.fields import readable
from flux_endpoint.protocol.rest import RegisterEndpoint


@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "\x9b1A", "a\nb", "\u202eabc", "a b", ""])
def test_a_logs_fields_are_of_one_line_of_plain_characters(text: str) -> None:
    record = logging.LogRecord("log", logging.INFO, "", 0, "what", None, None)
    record.fields = {"name": text, "other": "josé"}
    shown = message_of(record)
    assert shown.isprintable()
    assert shown.endswith(" other=josé")
    assert text not in shown.split("name=")[1].split(" other")[0].strip('"') or text in ("", "a b")


def test_reports_are_text_for_people() -> None:
    report = {"a\x1b": ["\x1b]0;x\x07", "one\n\ttwo", "josé \u202e", "\ud800", 5, None, 1.5, True]}
    shown = readable(report)
    assert shown == {"a?": ["?]0;x?", "one\n\ttwo", "josé ?", "?", 5, None, 1.5, True]}


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "a\0", "\u202ebal"])
def test_an_endpoints_names_are_printable(name: str) -> None:
    with pytest.raises(ValidationError):
        RegisterEndpoint.model_validate({"endpoint_name": "lab", "display_name": name})
    RegisterEndpoint.model_validate({"endpoint_name": "lab", "display_name": "Das Labor, 2. Stock"})
