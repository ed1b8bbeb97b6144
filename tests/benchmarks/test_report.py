"""What the benchmark makes of values: medians, ratios of equal rounds, bounds, documents."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import bench
import report
from levels import Answer, Comparison, Level, Row, Station
from machine import Load, Machine
from peers import ContenderError
from report import Record, Spread

LEVEL = Level(
    key="trial",
    title="Trial",
    rows=[Row("rate", "tasks", "/s", 100, 10), Row("time", "one task", "ms", 100, 10, "less")],
    contenders={"a": "ours", "b": "theirs"},
    stations=[],
    comparisons=[
        Comparison("rate", "a", "b", 2),
        Comparison("time", "a", "b", 0.5),
        Comparison("time", "a", None, 4),
    ],
)


def record_of(**values: dict[str, list[float | None]]) -> Record:
    machine = Machine("a processor", 2, 24.0, "6.1")
    counts = {"rate": 100, "time": 100}
    return Record("trial", "2026-01-02 03:04", False, machine, {"Flux": "1"}, counts, values)


@pytest.fixture
def record() -> Record:
    return record_of(
        rate={"a": [100.0, 300.0, 90.0], "b": [50.0, 100.0, 10.0]},
        time={"a": [6.0, 4.0, 5.0], "b": [10.0, None, 8.0]},
    )


def test_ratios_are_of_equal_rounds_and_have_their_median_and_ends(record):
    found = [report.compare(record, comparison) for comparison in LEVEL.comparisons]
    # The ratio of the medians, 100 to 50, would be another one.
    assert found == [Spread(3, 2, 9), Spread(0.6125, 0.6, 0.625), Spread(5, 4, 6)]


def test_a_row_without_values_has_no_ratio(record):
    assert report.ratio([], [1.0]) is None
    assert report.ratio([None, 1.0], [1.0]) is None
    assert report.ratio([1.0], [0.0]) is None
    assert report.spread([None]) is None


def test_a_row_may_be_compared_with_another_one(record):
    other = Comparison("rate", "a", "a", to="time")
    assert report.compare(record, other) == Spread(18, 100 / 6, 75)
    assert report.against(other, LEVEL) == "one task"
    assert report.against(replace(other, peer="b"), LEVEL) == "theirs, one task"


def test_a_bound_is_a_least_or_a_most_as_the_row_has_it():
    more, less = LEVEL.rows
    assert report.reaches(Spread(2, 1, 9), 2, more)
    assert not report.reaches(Spread(1.99, 1, 9), 2, more)
    assert report.reaches(Spread(2, 1, 9), 2, less)
    assert not report.reaches(Spread(2.01, 1, 9), 2, less)


def test_a_value_of_a_later_round_keeps_its_place(record):
    record = record_of()
    record.add(2, "rate", "a", 7.0)
    assert record.of("rate", "a") == [None, None, 7.0]
    assert record.rounds == 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12345.6, "12,346"),
        (123.456, "123"),
        (12.345, "12.3"),
        (1.2345, "1.23"),
        (0.12345, "0.123"),
        (0.001234, "0.0012"),
        (0.0, "0.0"),
    ],
)
def test_numbers_have_three_digits(value, shown):
    assert report.number(value) == shown


def test_the_tables_have_the_measured_values(record):
    lines = [" ".join(line.split()) for line in report.text(record, LEVEL).splitlines()]
    assert "| tasks | ours | theirs | 3.00 (2.00 to 9.00) | ≥ 2 | yes |" in lines
    assert "| one task | ours | theirs | 0.613 (0.600 to 0.625) | ≤ 0.5 | no |" in lines
    assert "| one task | ours | nothing | 5.00 ms (4.00 to 6.00) | ≤ 4 ms | no |" in lines
    assert "| tasks | theirs | 100 | 50.0 /s (10.0 to 100) |" in lines


def test_a_contender_without_values_is_reported_as_failed(record):
    del record.values["rate"]["b"]
    lines = [" ".join(line.split()) for line in report.ratios(record, LEVEL).splitlines()]
    assert "| tasks | ours | theirs | failed | ≥ 2 | |" in lines


def test_the_report_mentions_a_busy_machine(record):
    record.loads = [Load(0.01, 0.2), Load(0.05, 0.4)]
    assert "worth nothing" not in report.head(record)
    assert "others had 1% to 5% of the cores; load average 0.2 to 0.4" in report.head(record)
    record.loads.append(Load(0.5, 3.0))
    assert "before 1 of 3 turns" in report.head(record)
    assert "worth nothing" in report.head(record)
    with pytest.raises(SystemExit, match="others have 50% of its cores"):
        bench.refuse_busy(record.loads[-1], anyway=False)
    bench.refuse_busy(record.loads[-1], anyway=True)
    bench.refuse_busy(record.loads[0], anyway=False)


def test_data_and_figure_are_those_of_the_tables(record, tmp_path):
    bench.write(record, LEVEL, tmp_path, "trial")
    data = json.loads((tmp_path / "trial.json").read_text())
    assert data["values"]["rate"]["a"] == [100.0, 300.0, 90.0]
    assert [each["found"]["median"] for each in data["comparisons"]] == [3, 0.6125, 5]
    assert [each["reached"] for each in data["comparisons"]] == [True, False, False]
    figure = ET.parse(tmp_path / "trial.svg").getroot()
    words = " ".join(figure.itertext())
    assert "tasks — theirs" in words
    # Turned round where less is better: 0.6125 of the time is 1.63 times better.
    bars = bench.bars(record, LEVEL)
    assert [(round(b.value, 3), round(b.least, 3), b.bound) for b in bars] == [
        (3, 2, 2),
        (1.633, 1.6, 2.0),
    ]


def test_a_document_is_changed_between_its_marks_only(tmp_path):
    document = tmp_path / "performance.md"
    frame = "before\n<!-- benchmark: x -->old<!-- end of benchmark: x -->\nafter\n"
    document.write_text(frame)
    for content in ("new", "newer"):
        report.put(document, "x", content)
        assert document.read_text() == (
            f"before\n<!-- benchmark: x -->\n\n{content}\n\n<!-- end of benchmark: x -->\nafter\n"
        )
    with pytest.raises(ValueError, match="benchmark: y"):
        report.put(document, "y", "new")


def test_each_round_has_all_in_turn_and_every_other_one_the_other_way_round():
    order = []

    def station(name: str) -> Station:
        def take_turn(counts):
            order.append((name, counts))
            if name == "b" and len(order) == 2:
                raise ContenderError("it was too much")
            yield Answer("rate", name, float(len(order)))

        return Station(name, ("rate",), take_turn)

    level = replace(LEVEL, stations=[station("a"), station("b")])
    part = bench.Part(level, frozenset({"rate"}))
    record = bench.measure(part, rounds=2, quick=True, versions={})
    assert order == [(name, {"rate": 10}) for name in "abba"]
    # One that fails is told; its next turn counts.
    assert record.values == {"rate": {"a": [1.0, 4.0], "b": [None, 3.0]}}
    assert len(record.loads) == 4
    assert record.failures == ["b: it was too much"]


def test_rows_and_levels_are_chosen_by_name():
    (part,) = bench.chosen(["jobs", "mpi"])
    assert (part.level.key, part.rows, part.whole) == ("engine", {"jobs", "mpi"}, False)
    assert bench.chosen(["engine"])[0].whole
    with pytest.raises(ValueError, match=r"no rows warp; there are\nengine: functions"):
        bench.chosen(["warp"])


def test_every_comparison_is_of_what_is_measured():
    for level in bench.LEVELS:
        rows = {row.key for row in level.rows}
        for comparison in level.comparisons:
            assert {comparison.row, comparison.to or comparison.row} <= rows
            assert comparison.ours in level.contenders
            assert comparison.peer is None or comparison.peer in level.contenders
        assert rows == {row for station in level.stations for row in station.rows}
