"""Tables, colours, ids and durations: what a person who knows Flux expects."""

from __future__ import annotations

import math
import subprocess

import click
import pytest
from click.testing import CliRunner

from flux_endpoint.cli.table import (
    Column,
    Row,
    color_option,
    render,
    shown_duration,
    shown_jobid,
)

COLUMNS = [Column("JOBID", right=True), Column("NAME")]
ROWS = [Row(["ƒ2", "sleep"], "good"), Row(["ƒ2WXGLe", "x"])]


def test_columns_are_as_wide_as_what_is_in_them():
    assert render(COLUMNS, ROWS, color=False) == "  JOBID NAME\n     ƒ2 sleep\nƒ2WXGLe x"


def test_a_row_with_a_tone_has_the_colour_that_flux_jobs_gives_it():
    lines = render(COLUMNS, ROWS, color=True).split("\n")
    assert lines[1] == "\033[01;32m     ƒ2 sleep\033[0;0m"
    assert lines[2] == "ƒ2WXGLe x"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "False"),
        (["--color"], "True"),
        (["--color=always"], "True"),
        (["--color=never"], "False"),
    ],
)
def test_colours_are_asked_for_as_in_flux(arguments, expected):
    @click.command()
    @color_option
    def command(*, color):
        click.echo(str(color))

    assert CliRunner().invoke(command, arguments).output == f"{expected}\n"


def test_on_a_terminal_there_are_colours_unless_no_color_is_set(monkeypatch):
    from flux_endpoint.cli import table

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert table._wants_color("auto")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not table._wants_color("auto")
    assert table._wants_color("always")


def test_job_ids_are_f58(monkeypatch):
    monkeypatch.delenv("FLUX_F58_FORCE_ASCII", raising=False)
    assert shown_jobid(None) == "-"
    assert shown_jobid(0) == "ƒ1"
    monkeypatch.setenv("FLUX_F58_FORCE_ASCII", "1")
    assert shown_jobid(0) == "f1"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0004, "0s"),
        (0.162, "0.162s"),
        (9.5, "9.500s"),
        (42.125, "42.12s"),
        (90, "1.5m"),
        (5400, "1.5h"),
        (100_000, "1.157d"),
        (math.inf, "inf"),
    ],
)
def test_durations_are_as_flux_jobs_shows_them(seconds, text):
    assert shown_duration(seconds) == text


@pytest.mark.flux
def test_flux_prints_the_same_ids_and_durations(flux_uri, flux_module):
    from flux.util import fsd

    for jobid in (0, 12345, 29888610304, 2**63):
        command = ["flux", "job", "id", "--to=f58plain", str(jobid)]
        plain = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        assert shown_jobid(jobid)[1:] == plain[1:]
    for seconds in (0.0, 0.0005, 0.5, 9.9999, 12.3456, 59.99, 61, 3599, 3600, 86401, math.inf):
        assert shown_duration(seconds) == fsd(seconds)
