"""The benchmark of a shared allocation, with a load that takes a moment."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "utilization.py"
NODES, CORES = 2, 2
LOAD = {"--functions": 8, "--jobs": 2, "--gpu-jobs": 1, "--scale": 0.1}


@pytest.mark.flux
def test_a_mixed_run_is_measured_printed_and_drawn(tmp_path):
    svg, data = tmp_path / "figure.svg", tmp_path / "data.json"
    size = {"--nodes": NODES, "--cores": CORES, "--svg": svg, "--json": data}
    options = [str(word) for pair in {**LOAD, **size}.items() for word in pair]
    done = subprocess.run(
        [sys.executable, SCRIPT, *options], check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"Flux [\d.]+\S*, 2 nodes with 4 cores and 2 gpus in all", done.stdout)
    for line in (r"functions\s+8\s+1 ", r"MPI jobs\s+2\s+2 to 4 ", r"gpu jobs\s+1\s+1 "):
        assert re.search(line, done.stdout)

    found = json.loads(data.read_text())
    summary, tasks = found["summary"], found["tasks"]
    # Every core worked as long as it was told to, and none twice at a time.
    for task in tasks:
        assert len(task["work"]) == task["ranks"]
        assert all(end - begin >= task["seconds"] - 0.01 for begin, end in task["work"])
    available = NODES * CORES * (summary["end"] - summary["begin"])
    busy = sum(summary["work"].values())
    assert sum(task["seconds"] * task["ranks"] for task in tasks) <= busy + 0.1
    assert busy <= available + 0.1
    assert summary["utilization"] == pytest.approx(busy / available)
    assert 0 < summary["shortest"] <= summary["end"]
    assert all(0 <= sample["allocated"] <= NODES * CORES for sample in found["samples"])
    assert any(sample["allocated"] for sample in found["samples"])

    figure = ET.parse(svg).getroot()
    words = " ".join(figure.itertext())
    for word in ("functions", "MPI jobs", "gpu jobs", "allocated", "seconds", "cores"):
        assert word in words
