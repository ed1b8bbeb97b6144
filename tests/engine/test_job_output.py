"""The end of a job's output file."""

import os

from flux_endpoint.engine.job_output import end_of_file


def test_the_end_of_a_file_is_read_from_where_the_job_ran(tmp_path):
    (tmp_path / "out").write_text("".join(f"{number}\n" for number in range(5000)))
    lines = end_of_file("out", str(tmp_path)).splitlines()
    assert (len(lines), lines[-1]) == (1000, "4999")
    assert end_of_file(str(tmp_path / "out"), "/nowhere").endswith("4999\n")


def test_a_missing_output_file_is_named(tmp_path):
    said = end_of_file("out", str(tmp_path))
    assert said.startswith(f"[output went to {tmp_path}/out, which is not here (any more); ")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "out")
    assert end_of_file("out", str(tmp_path)) == ""
