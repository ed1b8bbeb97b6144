"""One warning for each endpoint whose Python or dill is another."""

from __future__ import annotations

import platform
import uuid
import warnings

import dill
import pytest

from flux_endpoint.client.skew import VersionSkewWarning, warn_of_skew

HERE = {"python_version": platform.python_version(), "dill_version": dill.__version__}


def details(**versions):
    return {"endpoint_id": str(uuid.uuid4()), **HERE, **versions}


def test_the_warning_about_another_python_has_both_versions_and_a_remedy():
    given = details(python_version="3.1.4")
    with pytest.warns(VersionSkewWarning) as caught:
        warn_of_skew(given)
    [warning] = caught
    text = str(warning.message)
    assert given["endpoint_id"] in text
    assert "with Python 3.1.4" in text
    assert platform.python_version() in text
    assert "Submit with Python 3.1," in text
    assert "AllCodeStrategies" in text


def test_another_dill_is_warned_of():
    with pytest.warns(VersionSkewWarning, match=r"dill 0\.1\.9"):
        warn_of_skew(details(dill_version="0.1.9"))


@pytest.mark.parametrize(
    "given",
    [
        details(),
        details(python_version=".".join(platform.python_version().split(".")[:2]) + ".99"),
        None,
        {},
        {"endpoint_id": "e"},
        details(dill_version=None),
    ],
)
def test_matching_or_unknown_versions_cause_no_warning(given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_skew(given)


def test_an_endpoint_is_warned_of_once_until_it_changes():
    given = details(python_version="3.1.4")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            warn_of_skew(given)
        warn_of_skew({**given, "python_version": "3.2.0"})
    assert len(caught) == 2
