"""Job ids print and parse as Flux's own do."""

from __future__ import annotations

import json

import pytest
from worlds import PATIENCE, text

from flux_endpoint.protocol.jobid import format_jobid, parse_jobid


def test_an_id_is_a_number_that_prints_in_base_58(world):
    jobid = world.executor.submit(text("true")).jobid(PATIENCE)
    assert str(jobid) == f"{jobid}" == format_jobid(jobid)
    assert str(jobid).startswith("ƒ")
    assert json.loads(json.dumps(jobid)) == jobid


@pytest.mark.flux
@pytest.mark.parametrize("number", [0, 1, 57, 58, 12345, 23739760640, 2**63, 2**64 - 1])
def test_every_form_is_the_one_of_flux(flux_module, number):
    theirs = flux_module.job.JobID(number)
    for form in ("f58", "dec", "hex", "dothex", "kvs", "words", "emoji"):
        assert format_jobid(number, form) == str(getattr(theirs, form))
        assert parse_jobid(str(getattr(theirs, form))) == number
