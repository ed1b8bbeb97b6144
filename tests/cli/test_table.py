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
    table_of,
    view_options,
    wrapped,
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


NARROW = [
    Column("ID"),
    Column("NAME", least=6),
    Column("JOB", right=True, goes=1),
    Column("HOST", goes=2),
    Column("ERROR", least=8, goes=3),
]
WIDE_ROWS = [
    Row(["abcdefgh", "a long function", "-", "node1", "something went wrong"]),
    Row(["ijklmnop", "f", "-", "node2", ""]),
]


def fitted(width, columns=NARROW, rows=WIDE_ROWS):
    return render(columns, rows, color=False, width=width).split("\n")


def test_a_table_that_fits_is_whole():
    lines = fitted(80)
    assert lines[0].split() == ["ID", "NAME", "JOB", "HOST", "ERROR"]
    assert lines[1].endswith("something went wrong")


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (54, ["ID", "NAME", "HOST", "ERROR"]),  # an empty column goes first
        (30, ["ID", "NAME", "HOST", "ERROR"]),  # then columns shrink
        (29, ["ID", "NAME", "HOST"]),  # then they go, the least important first
        (20, ["ID", "NAME"]),
        (15, ["ID", "NAME"]),
    ],
)
def test_columns_shrink_and_go_until_a_table_fits(width, titles):
    lines = fitted(width)
    assert lines[0].split() == titles
    assert all(len(line) <= width for line in lines)


def test_what_can_neither_shrink_nor_go_stays():
    assert fitted(5)[1] == "abcdefgh a lon…"


def test_room_that_is_left_goes_to_the_first_columns():
    assert fitted(40)[1] == "abcdefgh a long function node1 somethin…"


def test_chosen_columns_do_not_go():
    columns = {column.title.lower(): column for column in NARROW}
    lines = table_of(columns, WIDE_ROWS, ["host", "id"], color=False, width=5).split("\n")
    assert lines == ["HOST  ID", "node1 abcdefgh", "node2 ijklmnop"]


def test_columns_are_chosen_by_name():
    @click.command()
    @view_options({"id": COLUMNS[0], "name": COLUMNS[1]})
    def command(*, view):
        click.echo(f"{view.chosen} {view.wide}")

    def out(*arguments):
        return CliRunner().invoke(command, arguments).output

    assert out() == "None False\n"
    assert out("-o", "name, ID,name", "--wide") == "['name', 'id'] True\n"
    assert "no column is called 'nme'; did you mean 'name'?" in out("--columns=nme")


def test_text_beside_a_title_is_wrapped():
    assert wrapped("one two three four five", 21, 10) == ["one two three four", "five"]
    assert wrapped("one two", None, 10) == ["one two"]
