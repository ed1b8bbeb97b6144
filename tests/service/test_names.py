"""Names of users and groups that people could take for each other."""

from __future__ import annotations

import pytest

from flux_endpoint.service.names import fault_of, similar_name


@pytest.mark.parametrize(
    "name",
    [
        "ada",
        "ada@example.org",
        "Ada Lovelace",
        "josé",
        "Ада",
        "ада-2",
        "山田タロウ",
        "Σωκράτης",
        "x" * 256,
    ],
)
def test_ordinary_names_are_valid(name: str) -> None:
    assert fault_of(name) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "printable"),
        ("*", "'*'"),
        ("x" * 257, "256"),
        ("ada\n", "printable"),
        ("ada\u200b", "printable"),
        ("ada\u202e", "printable"),
        ("ada\u00a0b", "printable"),
        ("ada ", "blanks"),
        (" ada", "blanks"),
        ("ada  b", "blanks"),
        ("jose\u0301", "NFKC"),
        ("\uff41da", "NFKC"),
        ("\u212bke", "NFKC"),
        ("ada\ufe0f", "can't be seen"),
        ("a\u034fda", "can't be seen"),
        ("\u0430da", "Cyrillic and Latin"),
        ("\u03bfda", "Greek and Latin"),
    ],
)
def test_confusable_names_are_invalid(name: str, fault: str) -> None:
    assert fault in str(fault_of(name))


def test_upper_and_lower_case_do_not_tell_names_apart() -> None:
    assert similar_name("Ada", ["bob", "ada"]) == "ada"
    assert similar_name("STRASSE", ["straße"]) == "straße"
    assert similar_name("ada", ["ada", "bob"]) is None
