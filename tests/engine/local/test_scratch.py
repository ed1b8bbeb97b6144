"""The private directory of an instance, and those of instances that were killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

import pytest

from flux_endpoint.engine.local.scratch import ScratchDirectory


@pytest.fixture
def parent(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_by_a_killed_one(parent, name):
    path = parent / f"flux-endpoint-jobs-{name}"
    path.mkdir()
    (path / "lock").touch()
    return path


def test_the_directory_of_a_killed_instance_is_removed(parent):
    left = left_by_a_killed_one(parent, "dead")
    ScratchDirectory().remove()
    assert not left.exists()


def test_the_directory_of_a_running_instance_is_kept(parent):
    living = ScratchDirectory()
    ScratchDirectory().remove()
    assert living.path.is_dir()
    living.remove()


def test_a_tree_too_deep_to_remove_is_ignored(parent):
    left = left_by_a_killed_one(parent, "deep")
    top = os.open(left, os.O_RDONLY)
    for _ in range(sys.getrecursionlimit() * 2):
        os.mkdir("d", dir_fd=top)
        below = os.open("d", os.O_RDONLY, dir_fd=top)
        os.close(top)
        top = below
    os.close(top)
    try:
        ScratchDirectory().remove()
    finally:
        subprocess.run(["rm", "-rf", left], check=True)  # pytest could not
    assert not left.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory to somebody else")
def test_a_directory_of_another_user_is_kept(parent):
    left = left_by_a_killed_one(parent, "theirs")
    shutil.chown(left, 12345)
    ScratchDirectory().remove()
    assert left.exists()
