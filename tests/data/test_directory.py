"""Objects in a shared directory."""

from __future__ import annotations

import copy
import os
import pickle
import time
from pathlib import Path

import pytest
from tests.data.test_objects import Array

from flux_endpoint.data import SharedDirectory
from flux_endpoint.data import directory as directories
from flux_endpoint.data.directory import NEVER, FilePlace
from flux_endpoint.errors import DataStoreError, SerializationError
from small_disk import SmallDisk, small_disk

__all__ = ["small_disk"]
DAY = 86_400.0
DATA = list(range(5000))


def files(store: SharedDirectory) -> list[Path]:
    return sorted(store.directory.iterdir())


def file_of(store: SharedDirectory) -> Path:
    (file,) = files(store)
    return file


def test_a_handle_has_the_object(store):
    handle = store.put(DATA)
    assert handle.get() == DATA
    assert handle.size == file_of(store).stat().st_size
    assert copy.deepcopy([handle])[0] is copy.copy(handle)
    assert "KiB" in repr(handle)
    assert pickle.loads(pickle.dumps({"in": [handle]})) == {"in": [DATA]}


def test_only_the_owner_can_read_directory_and_files(store):
    before = os.umask(0)
    try:
        store.put(DATA)
    finally:
        os.umask(before)
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert file_of(store).stat().st_mode & 0o777 == 0o600


def test_equal_objects_are_one_file_that_lives_as_long_as_the_longest_wish(store):
    for lifetime in ("7d", "9d", "2d"):
        store.put(list(DATA), lifetime=lifetime)
    assert abs(file_of(store).stat().st_mtime - time.time() - 9 * DAY) < 600
    store.put(DATA, lifetime="infinity")
    assert file_of(store).stat().st_mtime == NEVER


def test_an_expired_file_that_may_be_about_to_go_is_written_again(store):
    store.put(DATA)
    first = file_of(store)
    os.utime(first, (0, time.time() - 1))
    inode = first.stat().st_ino
    store.put(DATA)
    assert first.stat().st_ino != inode
    assert first.stat().st_mtime > time.time()


def test_a_write_that_fails_leaves_nothing(store, monkeypatch):
    store.put(1)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "broken disk")))
    with pytest.raises(DataStoreError, match=r"can't write to the store .*broken disk"):
        store.put(DATA)
    assert len(files(store)) == 1


def test_that_a_store_can_not_be_noted_is_logged_once(store, monkeypatch, caplog):
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", "/proc/nothing")
    assert [store.put(number).get() for number in (1, 2)] == [1, 2]
    assert caplog.text.count(f"the store {store.directory} can't be noted") == 1


def test_a_full_disk_is_reported(small_disk: SmallDisk):
    store = SharedDirectory(small_disk.path / "store", lifetime="1d")
    small_disk.fill()
    with pytest.raises(DataStoreError, match=r"has no room for .*flux-endpoint data prune"):
        store.put(DATA)
    small_disk.clear()
    assert store.put(DATA).get() == DATA


def test_a_directory_that_is_not_there_is_named(tmp_path):
    store = SharedDirectory(tmp_path / "not" / "mounted", lifetime="1d")
    with pytest.raises(DataStoreError, match=r"not/mounted on .* is not there"):
        store.put(DATA)
    (tmp_path / "not").touch()
    with pytest.raises(DataStoreError, match=r"not/mounted on .* is a file, or is below one"):
        store.put(DATA)
    (tmp_path / "not").unlink()
    place = FilePlace(str(tmp_path / "not"), "0" * 64, 5)
    with pytest.raises(DataStoreError, match=r"not there on .*at an endpoint that sees"):
        place.read()


def test_what_is_gone_damaged_or_someone_elses_is_not_read(store):
    handle = store.put(DATA)
    file = file_of(store)
    content = file.read_bytes()
    file.chmod(0o660)
    with pytest.raises(DataStoreError, match=r"not a file that only .* can write"):
        handle.get()
    file.chmod(0o600)
    file.write_bytes(content[:-1])
    with pytest.raises(DataStoreError, match="damaged"):
        handle.get()
    file.write_bytes(content[:-1] + b"?")
    with pytest.raises(DataStoreError, match="damaged"):
        handle.get()
    handle.delete()
    handle.delete()
    with pytest.raises(DataStoreError, match="its lifetime is over, it was deleted, or"):
        handle.get()


def test_links_and_pipes_are_not_followed(store, tmp_path):
    handle = store.put(DATA)
    file = file_of(store)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataStoreError, match="can't be read"):
        handle.get()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataStoreError, match="not a file"):
        handle.get()


@pytest.mark.parametrize(
    ("directory", "digest"),
    [("/etc", "passwd"), ("/tmp", "../etc/passwd"), ("/tmp", "0" * 63 + "/"), ("tmp", "0" * 64)],
)
def test_a_reference_names_no_other_file(directory, digest):
    with pytest.raises(DataStoreError, match="is not the name of a stored object"):
        FilePlace(directory, digest, 10)


def test_a_forged_reference_is_checked_when_it_is_read(store):
    honest = pickle.dumps(store.put(DATA))
    digest = file_of(store).stem.encode()
    with pytest.raises(DataStoreError, match="is not the name of a stored object"):
        pickle.loads(honest.replace(digest, b"../" * 20 + b"/etc"))


def test_arrays_are_mapped_and_changes_stay_with_the_task(store):
    handle = store.put(Array(bytearray(b"a" * 10_000)))
    array = handle.get()
    assert not isinstance(array.data, bytearray)
    array.data[:3] = b"new"
    assert bytes(handle.get().data[:3]) == b"aaa"


def test_so_many_mappings_that_descriptors_could_run_out_are_not_made(store, monkeypatch):
    monkeypatch.setattr(directories, "_MOST_MAPPED", 2)
    handle = store.put(Array(bytearray(b"a" * 10_000)))
    arrays = [handle.get() for _ in range(4)]
    assert len(directories._mapped) <= 2
    arrays[-1].data[:3] = b"new"
    assert bytes(arrays[-1].data[:4]) == b"newa"


@pytest.mark.parametrize("lifetime", ["1 week", -1, 5, "nan"])
def test_a_lifetime_has_a_unit_and_is_not_too_short(lifetime, tmp_path):
    with pytest.raises(ValueError, match=r"duration|lifetime"):
        SharedDirectory(tmp_path, lifetime=lifetime)


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match="must be absolute"):
        SharedDirectory("store", lifetime="1d")
    with pytest.raises(ValueError, match="not a size"):
        SharedDirectory(tmp_path, lifetime="1d", threshold="large")
    with pytest.raises(TypeError, match="lifetime"):
        SharedDirectory(tmp_path)  # type: ignore[call-arg]


def test_what_can_not_be_pickled_is_named(store):
    with pytest.raises(SerializationError, match="an object of type 'generator' can't be stored"):
        store.put(each for each in ())
