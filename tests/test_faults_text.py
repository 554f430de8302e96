"""Faults T1 to T9: text that is missing, broken, odd or hostile."""

from __future__ import annotations

import codecs
import gzip
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
import zstandard

from sae_core.corpus import DocumentPlan, plan_documents
from sae_core.errors import TextError
from sae_core.tokens import token_bytes, token_str

if TYPE_CHECKING:
    from collections.abc import Iterator


def finished(*texts: Path | str, skip_bad_rows: bool = False) -> tuple[DocumentPlan, list[bytes]]:
    plan = plan_documents(texts, skip_bad_rows=skip_bad_rows)
    return plan, [document.data for document in plan.read()]


def refusal(*texts: Path | str) -> str:
    with pytest.raises(TextError) as caught:
        finished(*texts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_t1_a_missing_file_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/none.txt cannot be read (No such file" in refusal(tmp_path / "none.txt")


def test_t1_a_missing_file_is_named_before_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(TextError, match=r"none\.txt"):
        plan_documents([tmp_path / "a.txt", tmp_path / "none.txt"])


def test_t1_a_folder_without_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("text")
    assert f"{tmp_path} is a folder without text" in refusal(tmp_path)


def test_t1_a_glob_that_matches_nothing_is_named(tmp_path: Path) -> None:
    assert "*.html matches nothing" in refusal(f"{tmp_path}/*.html")


@pytest.fixture
def nobody() -> Iterator[None]:
    """Give up the rights of root, which may read everything, for one test."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    yield
    os.setresuid(0, 0, 0)


@pytest.fixture
def secret() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "secret.txt").write_text("text")
        (Path(folder) / "secret.txt").chmod(0)
        yield Path(folder) / "secret.txt"


@pytest.mark.usefixtures("nobody")
def test_t1_a_file_without_permission_is_named(secret: Path) -> None:
    assert "secret.txt cannot be read (Permission denied)" in refusal(secret)
    assert "secret.txt cannot be read (Permission denied)" in refusal(secret.parent)


@pytest.mark.parametrize("data", [b"", b" \n\t\r\n", codecs.BOM_UTF8, codecs.BOM_UTF8 + b"\n"])
def test_t2_a_blank_file_is_counted_and_left_out(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "blank.txt").write_bytes(data)
    (tmp_path / "text.txt").write_bytes(b"x")
    plan, texts = finished(tmp_path)
    assert texts == [b"x"]
    assert plan.counts.sentences() == ["1 document empty or blank, left out"]


def test_t2_all_blank_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"\n")
    said = refusal(tmp_path)
    assert "a.txt and 1 more: no text (2 documents empty or blank" in said


@pytest.mark.parametrize(
    "data",
    [b"caf\xe9", "<p>caf\u00e9".encode("utf-16"), b"a\xff\xfe\xc3", b"\xed\xa0\x80"],
)
def test_t3_bytes_that_are_no_utf8_are_kept_and_counted(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    plan, texts = finished(tmp_path)
    assert texts == [data]
    assert plan.counts.n_invalid_utf8 == 1


def test_t3_nul_bytes_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\0b")
    plan, texts = finished(tmp_path)
    assert texts == [b"a\0b"]
    assert plan.counts.n_invalid_utf8 == 0


def test_t5_a_file_matched_twice_is_read_once_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    plan, texts = finished(tmp_path, f"{tmp_path}/*.txt")
    assert texts == [b"text"]
    assert "1 document with the same bytes" in plan.counts.sentences()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_t5_many_small_files_leave_no_handle_open(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.txt").write_text(str(number))
    before = len(list(Path("/proc/self/fd").iterdir()))
    _, texts = finished(tmp_path)
    after = len(list(Path("/proc/self/fd").iterdir()))
    assert len(texts) == 2000
    assert after == before


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_t6_of_a_cut_archive_the_beginning_is_kept(tmp_path: Path, suffix: str) -> None:
    text = os.urandom(500_000).hex().encode()
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    packed = pack(text)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    plan, texts = finished(path)
    assert len(texts[0]) > 10_000
    assert text.startswith(texts[0])
    assert list(plan.counts.unfinished) == [str(path)]
    assert "not finished" in plan.counts.sentences()[-1]


def test_t6_the_cut_line_of_a_cut_jsonl_is_left_out(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%s"}\n' % os.urandom(50).hex().encode() for _ in range(1000))
    packed = gzip.compress(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    plan, texts = finished(tmp_path)
    assert 100 < len(texts) < 1000
    assert plan.counts.notes()["n_unfinished"] == 1


def test_t6_a_damaged_archive_keeps_what_came_before(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(os.urandom(50_000).hex().encode()))
    packed[-5] ^= 0xFF
    (tmp_path / "a.gz").write_bytes(packed)
    plan, _ = finished(tmp_path)
    assert "damaged" in plan.counts.unfinished[f"{tmp_path}/a.gz"]


def test_t6_text_that_is_called_gz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"plain")
    assert "does not start as gzip does" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"{", "row 2: it is not JSON"),
        (b"[1]", "row 2: it is a JSON list"),
        (b'{"body": "x"}', "row 2: it has the fields body"),
        (b'{"text": 5}', "row 2: its 'text' is of type int"),
        (b"[" * 100_000, "row 2: it is not JSON"),
    ],
)
def test_t7_a_bad_row_of_a_jsonl_is_named_or_skipped(tmp_path: Path, row: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + row + b'\n{"text": "three"}\n')
    assert said in refusal(path)
    plan, texts = finished(path, skip_bad_rows=True)
    assert texts == [b"one", b"three"]
    assert plan.counts.n_bad_rows == 1


def test_t7_a_parquet_without_text_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"body": ["x"], "n": [1]}).write_parquet(path)
    with pytest.raises(TextError, match=r"columns body \(String\), n \(Int64\).*'text'"):
        plan_documents([path])


def test_t7_a_parquet_with_text_of_another_type_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"text": [1]}).write_parquet(tmp_path / "a.parquet")
    assert "text (Int64)" in refusal(tmp_path)


def test_t7_a_null_row_of_a_parquet_is_named_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": ["one", None, "three"]}).write_parquet(path)
    assert "row 2: its 'text' is null" in refusal(path)
    plan, texts = finished(path, skip_bad_rows=True)
    assert (texts, plan.counts.n_bad_rows) == ([b"one", b"three"], 1)


def test_t7_a_cut_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": ["one"]}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a whole Parquet file" in refusal(path)


def test_t8_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "pipe.txt is a named pipe" in refusal(tmp_path / "pipe.txt")
    assert "pipe.txt is a named pipe" in refusal(tmp_path)


def test_t8_a_device_is_refused() -> None:
    assert "/dev/zero is a device" in refusal("/dev/zero")


def test_t8_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.txt")
        assert "s.txt is a socket" in refusal("s.txt")


def test_t8_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "a.txt")
    assert "a.txt cannot be read" in refusal(tmp_path / "a.txt")


@pytest.mark.parametrize(("size", "said"), [(5, "grew"), (50, "shrank from 50 to 10 bytes")])
def test_t8_a_file_that_changes_size_is_bounded_and_said(
    tmp_path: Path, size: int, said: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * size)
    plan = plan_documents([path])
    path.write_bytes(b"0123456789")
    assert [document.data for document in plan.read()] == [b"0123456789"[:size]]
    assert said in plan.counts.sentences()[0]


def test_t8_a_file_replaced_by_a_pipe_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x")
    plan = plan_documents([path])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TextError, match="no longer a regular file"):
        list(plan.read())


def test_t8_a_name_with_a_nul_is_refused() -> None:
    assert "cannot be read" in refusal("a\0b")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("\u202eabc".encode(), "\\u{202e}abc"),
        ("a\u200bb".encode(), "a\\u{200b}b"),
        ("\u0301".encode(), "\\u{301}"),
        (b"\x1b[31m", "\\u{1b}[31m"),
        ("\U0001f600".encode(), "\U0001f600"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
    ],
)
def test_t9_odd_characters_are_shown_escaped_and_come_back(data: bytes, text: str) -> None:
    assert token_str(data) == text
    assert token_bytes(text) == data


def test_t9_a_message_holds_no_raw_control_code(tmp_path: Path) -> None:
    said = refusal(tmp_path / "\x1b[31m\u202e.txt")
    assert "\\u{1b}[31m\\u{202e}.txt" in said
    assert "\x1b" not in said


def test_t9_a_hostile_field_name_is_shown_escaped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"\\u001b[31m": 1}\n')
    assert "\x1b" not in refusal(tmp_path)
