"""A store in a directory that clients and workers share: one file for each object.

A file is named by the SHA-256 of its content, so equal objects are one file, and is never changed.
Its time of modification is the end of its lifetime: whoever sends a reference to it sets that.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import socket
import stat
import time
import uuid
import weakref
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flux_endpoint.data import known_stores
from flux_endpoint.data.objects import Buffer, EncodedObject
from flux_endpoint.data.references import Place
from flux_endpoint.data.stores import DEFAULT_THRESHOLD, DataStore, damaged, shown_size
from flux_endpoint.errors import DataStoreError

_SUFFIX = ".data"
_NAME = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.partial")
#: The end of unlimited lifetimes: the last time that every file system can store.
NEVER = 2**31 - 1
#: Seconds for which a file stays after its lifetime, since the clocks of machines differ.
GRACE = 3600.0
#: Seconds after which a file that is still being written is abandoned.
ABANDONED = 86_400.0
#: The most files that are mapped at a time: each takes a descriptor. Others are read.
_MOST_MAPPED = 64
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
#: Files whose digests this process has compared, the latest last: not again for each task.
_compared: OrderedDict[tuple[object, ...], None] = OrderedDict()
_MOST_COMPARED = 1024


class SharedDirectory(DataStore):
    """A directory that the client and the endpoint's workers see under the same path.

    It belongs to one user: the endpoint runs as the user who writes the data. It is created, with
    mode 0700, if the directory above it exists. A client that does not see it can submit tasks
    that leave their results there, and pass these to other tasks.

    Args:
        directory: its absolute path.
        lifetime: see `DataStore`.
        threshold: see `DataStore`.

    Attributes:
        directory: its absolute path.

    Raises:
        ValueError: the path is not absolute, or a number is out of range.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        lifetime: float | str,
        threshold: float | str = DEFAULT_THRESHOLD,
    ) -> None:
        super().__init__(lifetime, threshold)
        self.directory = Path(directory).expanduser()
        if not self.directory.is_absolute():
            raise ValueError(
                f"the path of a shared directory must be absolute, got {str(directory)!r}: workers "
                "run elsewhere"
            )

    def __repr__(self) -> str:
        return f"SharedDirectory({str(self.directory)!r}, {self._settings})"

    def __reduce__(self) -> tuple[object, ...]:
        return _made, (str(self.directory), self.lifetime, self.threshold)

    def _keep(self, data: EncodedObject, lifetime: float) -> tuple[Place, int]:
        digest, size = data.digest()
        place = FilePlace(str(self.directory), digest, size)
        ends = min(time.time() + lifetime, NEVER)
        try:
            if not place.extend(ends):
                self._prepare()
                self._write(place.path, data, ends)
        except OSError as error:
            raise self._failed(error, size) from error
        known_stores.note_directory(self.directory)
        return place, size

    def _prepare(self) -> None:
        with suppress(FileExistsError):
            self.directory.mkdir(mode=0o700)
            self.directory.chmod(0o700)

    def _write(self, path: Path, data: EncodedObject, ends: float) -> None:
        partial = self.directory / f".{uuid.uuid4().hex}.partial"
        try:
            with os.fdopen(
                os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
            ) as file:
                os.fchmod(file.fileno(), 0o600)  # regardless of the umask
                for part in data.parts():
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.utime(partial, (time.time(), ends), follow_symlinks=False)
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    def _failed(self, error: OSError, size: int) -> DataStoreError:
        where = f"{self.directory} on {socket.gethostname()}"
        if isinstance(error, NotADirectoryError):
            return DataStoreError(f"the store {where} is a file, or is below one: name a directory")
        if isinstance(error, FileNotFoundError):
            return DataStoreError(
                f"the store {where} is not there, nor is the directory above it. It must be "
                "visible here and at the endpoint under the same path"
            )
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DataStoreError(
                f"the store {where} has no room for {shown_size(size)} ({error.strerror}): "
                "`flux-endpoint data list` shows what is in it, `flux-endpoint data prune` removes "
                "what has expired"
            )
        return DataStoreError(f"can't write to the store {where} as {_user()}: {error.strerror}")


def _made(directory: str, lifetime: float, threshold: float) -> SharedDirectory:
    return SharedDirectory(directory, lifetime=lifetime, threshold=threshold)


@dataclass(frozen=True)
class FilePlace(Place):
    """A file of a shared directory. Nothing else can be read by it.

    Attributes:
        directory: the directory.
        digest: SHA-256 of the content.
        size: bytes of the content.
    """

    directory: str
    digest: str
    size: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.digest) or not Path(self.directory).is_absolute():
            raise DataStoreError(f"{self.digest[:70]!r} is not the name of a stored object")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.directory, self.digest, self.size)  # by which it is checked

    def __str__(self) -> str:
        return f"{self.digest[:8]} in {self.directory}"

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.directory, self.digest + _SUFFIX)

    @property
    def _what(self) -> str:
        return f"the object {self.digest[:8]} ({shown_size(self.size)})"

    def extend(self, ends: float) -> bool:
        """Let the file live at least until a time (s since the epoch).

        Returns:
            Whether it is there. A file that may be about to be removed is not.
        """
        try:
            status = self.path.lstat()
            if not _is_ours(status) or status.st_size != self.size or status.st_mtime < time.time():
                return False
            if status.st_mtime < ends:
                os.utime(self.path, (time.time(), ends), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def prolong(self, lifetime: float) -> None:
        """Set the end of its lifetime; who reads a file that is gone says so."""
        with suppress(OSError):  # e.g. a directory that is not visible here
            self.extend(min(time.time() + lifetime, NEVER))

    def read(self) -> Buffer:
        """Return the bytes of the file: mapped, so that workers of a node share the memory."""
        try:
            # Without O_NONBLOCK, opening a FIFO would wait.
            descriptor = os.open(
                self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            status = os.fstat(descriptor)
            if not _is_ours(status):
                raise DataStoreError(
                    f"{self._what} in {self.directory} is not a file that only {_user()} can "
                    "write, as whom this process runs: a store belongs to one user"
                )
            if status.st_size != self.size:
                raise damaged(f"{self._what} in {self.directory}")
            content = _content(descriptor, self.size)
        except OSError as error:
            raise self._unreadable(error) from error
        finally:
            os.close(descriptor)
        self._compare(content, status)
        return content

    def _compare(self, content: Buffer, status: os.stat_result) -> None:
        state = (self.digest, status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size)
        if state in _compared:
            return
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise damaged(f"{self._what} in {self.directory}")
        _compared[state] = None
        if len(_compared) > _MOST_COMPARED:
            _compared.popitem(last=False)

    def remove(self) -> None:
        """Remove the file."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise DataStoreError(
                f"can't remove {self._what} from {self.directory}: {error.strerror}"
            ) from error

    def _unreadable(self, error: OSError) -> DataStoreError:
        host = socket.gethostname()
        if not isinstance(error, FileNotFoundError):
            return DataStoreError(
                f"{self._what} can't be read from {self.directory} on {host} as {_user()}: "
                f"{error.strerror}"
            )
        if Path(self.directory).is_dir():
            return DataStoreError(
                f"{self._what} is not in {self.directory} on {host}: its lifetime is over, it was "
                "deleted, or this is not the directory that it was written to"
            )
        return DataStoreError(
            f"{self._what} is in {self.directory}, which is not there on {host}. Tasks at an "
            "endpoint that sees this directory can take the object as an argument"
        )


def is_object(name: str) -> bool:
    """Return whether a file of a store has the name of an object."""
    return name.endswith(_SUFFIX) and _NAME.fullmatch(name.removesuffix(_SUFFIX)) is not None


def is_unfinished(name: str) -> bool:
    """Return whether a file of a store has the name of one that is being written or removed."""
    return _UNFINISHED.fullmatch(name) is not None


def _is_ours(status: os.stat_result) -> bool:
    """Return whether nobody else can change a file: what is read from it is unpickled."""
    private = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return stat.S_ISREG(status.st_mode) and private


def _content(descriptor: int, size: int) -> Buffer:
    if len(_mapped) < _MOST_MAPPED and size:
        with suppress(OSError):  # a file system that can't
            # Arrays can be changed; the file can't.
            content = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
            _mapped.add(content)
            return memoryview(content)
    with open(descriptor, "rb", closefd=False) as file:
        content_read = bytearray(size)
        if file.readinto(content_read) != size:
            raise OSError(errno.EIO, "the file is shorter than it was")
        return content_read


def _user() -> str:
    import pwd  # noqa: PLC0415 - for an error

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"
