"""Files appear whole or not at all, and one process at a time writes a folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import polars as pl
import pytest

from sae_core.errors import StoreError
from sae_core.files import (
    LOCK_NAME,
    DirectoryLock,
    read_json,
    read_parquet,
    reading,
    sha256_of,
    write_atomic,
    write_bytes,
    write_json,
    write_parquet,
    write_text,
)

if TYPE_CHECKING:
    from pathlib import Path


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_pid() -> int:
    """Give the id of a process that has just ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def hold(folder: Path, pid: int, host: str) -> None:
    (folder / LOCK_NAME).write_text(json.dumps({"pid": pid, "host": host}))


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "grün\r\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "grün\r\n".encode()
    assert left_in(tmp_path / "a") == ["b.txt"]


@pytest.mark.parametrize("error", [OSError(5, "broken"), RuntimeError("broken"), KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "kept.txt"
    write_bytes(target, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise error

    with pytest.raises((StoreError, RuntimeError, KeyboardInterrupt)):
        write_atomic(target, fail)
    assert target.read_bytes() == b"old"
    assert left_in(tmp_path) == ["kept.txt"]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "kept.txt"
    write_bytes(target, b"old")
    code = (
        "import os, sys; from pathlib import Path; from sae_core.files import write_atomic\n"
        "def half(path):\n    path.write_bytes(b'half'); os.kill(os.getpid(), 9)\n"
        "write_atomic(Path(sys.argv[1]), half)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -9
    assert target.read_bytes() == b"old"
    assert [name for name in left_in(tmp_path) if not name.endswith(".tmp")] == ["kept.txt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110 - a device
def test_a_full_disk_is_said_and_the_old_file_kept(tmp_path: Path) -> None:
    target = tmp_path / "kept.txt"
    write_bytes(target, b"old")

    def fill(temporary: Path) -> None:
        del temporary
        with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - a device
            full.write(b"x")

    with pytest.raises(StoreError, match=r"kept\.txt was not written: the disk is full"):
        write_atomic(target, fill)
    assert target.read_bytes() == b"old"


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/b\.txt was not written"):
        write_text(tmp_path / "file" / "b.txt", "x")


def test_data_are_on_disk_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        calls.append("fsync")
        sync(handle)

    def noted_rename(src: str, dst: str) -> None:
        calls.append("rename")
        rename(src, dst)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_rename)
    write_text(tmp_path / "a.txt", "x")
    assert calls == ["fsync", "rename", "fsync"]


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1, 2], "b": [["x"], []]})
    write_parquet(tmp_path / "1.parquet", frame)
    write_parquet(tmp_path / "2.parquet", frame)
    assert sha256_of(tmp_path / "1.parquet") == sha256_of(tmp_path / "2.parquet")
    assert read_parquet(tmp_path / "1.parquet").equals(frame)


def test_json_is_sorted_and_ascii(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "ü", "a": 1})
    assert (tmp_path / "a.json").read_bytes() == b'{\n "a": 1,\n "b": "\\u00fc"\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": 1, "b": "ü"}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe{", b"[" * 200_000])
def test_a_file_that_is_no_json_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"a\.json is not readable JSON"):
        read_json(tmp_path / "a.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")
    with pytest.raises(StoreError, match=r"a\.parquet is missing"):
        read_parquet(tmp_path / "a.parquet")
    with pytest.raises(StoreError, match="cannot be read"), reading(tmp_path / "gone"):
        (tmp_path / "gone").read_bytes()


def test_a_huge_json_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(65 << 20)  # sparse
    with pytest.raises(StoreError, match=r"a\.json is over 64 MB"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("keep", [0, 3, 200])
def test_a_cut_parquet_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a[1].parquet"  # brackets are no pattern here
    write_parquet(path, pl.DataFrame({"a": range(1000)}))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match=r"a\[1\]\.parquet is not a whole Parquet file"):
        read_parquet(path)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    hold(tmp_path, os.getppid(), socket.gethostname())
    with pytest.raises(StoreError, match=f"is being written by process {os.getppid()} on"):
        DirectoryLock(tmp_path).__enter__()
    assert (tmp_path / LOCK_NAME).exists()


def test_a_writer_on_another_machine_is_trusted_to_live(tmp_path: Path) -> None:
    hold(tmp_path, dead_pid(), "another-machine")
    with pytest.raises(StoreError, match="on another-machine; wait for it, or delete"):
        DirectoryLock(tmp_path).__enter__()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    hold(tmp_path, dead_pid(), socket.gethostname())
    with DirectoryLock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x", "host": 1}'])
def test_a_lock_that_says_nothing_is_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_NAME).write_text(text)
    with DirectoryLock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), DirectoryLock(tmp_path):
        raise RuntimeError
    assert left_in(tmp_path) == []


def test_a_folder_made_for_a_lock_goes_with_it_when_nothing_was_written(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "empty"):
        pass
    with DirectoryLock(tmp_path / "used"):
        (tmp_path / "used" / "file").write_text("kept")
    assert left_in(tmp_path) == ["used"]


def test_two_real_processes_do_not_write_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sae_core.files import DirectoryLock\n"
        "with DirectoryLock(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"is being written by process {other.pid}"):
            DirectoryLock(tmp_path).__enter__()
        other.communicate("")
    with DirectoryLock(tmp_path):
        pass


def test_a_pipe_in_place_of_a_json_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(StoreError, match=r"a\.json is no regular file; a JSON document was"):
        read_json(tmp_path / "a.json")
