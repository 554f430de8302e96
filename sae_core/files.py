"""Files that appear whole or not at all.

1. Bytes go to a temporary file beside the target, on the same file system.
2. The file is synced to disk, then renamed over the target, then the folder is synced; so is the
   folder above each new folder.
3. A crash leaves the old file or the new one, and at most a stray `*.tmp`, never half a file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import polars as pl

from sae_core.errors import StoreError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

MAX_JSON_BYTES = 64 << 20  # a manifest of a million shards is 200 MB; ours stay far below
LOCK_NAME = ".lock"
ROW_GROUP = 1 << 20  # rows of a Parquet file that are compressed together


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file whole: to a temporary name beside it, synced, then renamed.

    Args:
        path: the final name; its folder is made when missing.
        write: is called with the temporary path and writes everything there.

    Raises:
        StoreError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        _make_folder(path.parent)
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as err:
        _discard(temporary)
        raise StoreError(_why_not_written(path, err)) from err
    except BaseException:
        _discard(temporary)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes to a file, whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomic(path, write)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a file, whole or not at all; newlines stay as they are."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n")


def write_parquet(path: Path, frame: pl.DataFrame | pl.LazyFrame) -> None:
    """Write a table as zstd Parquet, whole or not at all; equal tables give equal bytes."""

    def write(temporary: Path) -> None:
        frame.lazy().sink_parquet(
            temporary, compression="zstd", compression_level=3, row_group_size=ROW_GROUP
        )

    write_atomic(path, write)


def read_small_text(path: Path) -> str:
    """Read a text file of bounded size; a pipe, which would be waited for without end, is none.

    Raises:
        ValueError: it is no regular file, too large, or not UTF-8.
        OSError: it is missing or cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("no regular file; a JSON document was expected")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"over {MAX_JSON_BYTES >> 20} MB, too large to be ours")
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file of bounded size.

    Raises:
        StoreError: missing, too large, not UTF-8 or not JSON; the message names the file.
    """
    try:
        return json.loads(read_small_text(path))
    except FileNotFoundError as err:
        raise StoreError(f"{path} is missing") from err
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as err:
        raise StoreError(f"{path} is not readable JSON ({err}); write it again") from err
    except ValueError as err:
        raise StoreError(f"{path} is {err}") from err
    except OSError as err:
        raise StoreError(f"{path} cannot be read: {err.strerror}") from err


def read_parquet(path: Path) -> pl.DataFrame:
    """Read a Parquet table.

    Raises:
        StoreError: missing, cut or not Parquet; the message names the file.
    """
    with reading_parquet(path):
        return pl.read_parquet(path, glob=False)


def parquet_columns(path: Path) -> list[str]:
    """Give the names of a Parquet table's columns.

    Raises:
        StoreError: missing, cut or not Parquet; the message names the file.
    """
    with reading_parquet(path):
        return pl.scan_parquet(path, glob=False).collect_schema().names()


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Turn what polars says of a file into one sentence.

    Raises:
        StoreError: missing, cut or not Parquet; the message names the file.
    """
    try:
        yield
    except FileNotFoundError as err:
        raise StoreError(f"{path} is missing") from err
    except (pl.exceptions.PolarsError, OSError) as err:
        first = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise StoreError(f"{path} is not a whole Parquet file ({first})") from err


def sha256_of(path: Path) -> str:
    """Give the sha256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class LockHolder(NamedTuple):
    """Who holds a lock."""

    pid: int
    host: str


class DirectoryLock:
    """One writer at a time: a file with the holder's pid and host; a dead holder's is taken over.

    The folder is made when missing, and taken away again when nothing was written there.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self.folder = folder
        self.is_new = not folder.exists()

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            StoreError: a living process of this host, or one of another host, holds it.
        """
        try:
            _make_folder(self.folder)
            with _alone(self.folder):
                self._take()
        except OSError as err:
            raise StoreError(_why_not_written(self.folder, err)) from err
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the lock back."""
        self.path.unlink(missing_ok=True)
        if self.is_new:
            with suppress(OSError):  # it holds something
                self.folder.rmdir()

    def _take(self) -> None:
        try:
            self._create()
        except FileExistsError:
            self._take_over()

    def _create(self) -> None:
        handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(LockHolder(os.getpid(), socket.gethostname())._asdict(), file)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise

    def _take_over(self) -> None:
        holder = self._holder()
        if holder is not None and _lives(holder):
            raise StoreError(
                f"{self.folder} is being written by process {holder.pid} on {holder.host}; "
                f"wait for it, or delete {self.path} if that process is gone"
            )
        self.path.unlink(missing_ok=True)
        self._create()

    def _holder(self) -> LockHolder | None:
        try:
            found = json.loads(self.path.read_text())
            return LockHolder(int(found["pid"]), str(found["host"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _lives(holder: LockHolder) -> bool:
    if holder.host != socket.gethostname():
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return holder.pid != os.getpid()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time look at a folder's lock and take it.

    Without this, two that find the lock of a dead process could both take it over.
    """
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems know no such locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an operating-system error while reading `path` into one sentence."""
    try:
        yield
    except OSError as err:
        raise StoreError(f"{path} cannot be read: {err.strerror}") from err


def _discard(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it; each new name is on disk before the folder is used."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _why_not_written(path: Path, err: OSError) -> str:
    if err.errno == errno.ENOSPC:
        return f"{path} was not written: the disk is full; free some space and run again"
    if err.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{path} cannot be written ({err.strerror}); choose a folder that can be written"
    return f"{path} was not written: {err.strerror or err}"
