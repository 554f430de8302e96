"""Documents are read one at a time, whole, once, and in a stable order."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sae_core.corpus import DocumentPlan, plan_documents
from sae_core.errors import TextError
from sae_core.text_files import PlannedFile

if TYPE_CHECKING:
    from pathlib import Path


def read(*texts: object, skip_bad_rows: bool = False) -> list[tuple[str, bytes]]:
    plan = plan_documents([str(text) for text in texts], skip_bad_rows=skip_bad_rows)
    return [(document.source, document.data) for document in plan.read()]


def test_a_file_is_one_document_and_its_source_is_the_path_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.html").write_bytes(b"<p>\r\n\x00")
    monkeypatch.chdir(tmp_path)
    assert read("./page.html") == [("./page.html", b"<p>\r\n\x00")]


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    (document,) = plan_documents([tmp_path / "a.txt"]).read()
    assert document.sha256 == hashlib.sha256(b"abc").hexdigest()


def test_a_folder_is_walked_in_order_without_hidden_files_and_links(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "a.txt", ".hidden", ".git/x", "c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    sources = [source for source, _ in read(f"{tmp_path}/")]
    assert sources == [f"{tmp_path}/{name}" for name in ("a.txt", "c.md", "b/1.txt", "b/2.txt")]


def test_a_glob_gives_its_files_sorted(tmp_path: Path) -> None:
    for name in ("x2.txt", "x1.txt", "y.txt"):
        (tmp_path / name).write_text(name)
    assert [data for _, data in read(f"{tmp_path}/x*.txt")] == [b"x1.txt", b"x2.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("one")
    assert [data for _, data in read(tmp_path / "a[1].txt")] == [b"one"]


def test_a_name_that_is_no_utf8_is_read_and_printed_escaped(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "wb") as file:  # noqa: PTH123 - a Path cannot hold the byte
        file.write(b"latin")
    (found,) = read(tmp_path)
    assert found == (f"{tmp_path}/caf\\xe9.txt", b"latin")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_archives_of_several_members_are_read_through(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(pack(b"one " * 5000) + pack(b"two"))
    assert read(path) == [(str(path), b"one " * 5000 + b"two")]


def test_zeros_after_a_gzip_member_are_padding(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text") + bytes(10_000))
    plan = plan_documents([tmp_path / "a.gz"])
    assert [document.data for document in plan.read()] == [b"text"]
    assert plan.counts.unfinished == {}


def test_rows_of_a_jsonl_are_documents_with_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n{"id": 3, "text": "\\u00e4\xff"}')
    assert read(path) == [(f"{path}#1", b"one"), (f"{path}#3", b"\xc3\xa4\xff")]


def test_an_escaped_lone_surrogate_does_not_stop_a_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x\\ud800"}\n')
    assert [data for _, data in read(tmp_path / "a.jsonl")] == [b"x\xed\xa0\x80"]


def test_a_packed_jsonl_is_read_through(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "row %d"}\n' % row for row in range(3000))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    assert [data for _, data in read(tmp_path)] == [b"row %d" % row for row in range(3000)]


def test_rows_of_a_parquet_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": [f"row {row}" for row in range(9000)]}).write_parquet(path)
    found = read(path)
    assert found[0] == (f"{path}#1", b"row 0")
    assert found[-1] == (f"{path}#9000", b"row 8999")


def test_standard_input_is_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped \xff")))
    assert read("-") == [("-", b"piped \xff")]


def test_standard_input_twice_is_refused() -> None:
    with pytest.raises(TextError, match="given twice"):
        plan_documents(["-", "-"])


def test_nothing_given_is_refused() -> None:
    with pytest.raises(TextError, match="no text was given"):
        plan_documents([])


def test_the_plan_knows_the_size_and_hashes_sources_sizes_and_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12")
    (tmp_path / "b").write_text("345")
    plan = plan_documents([tmp_path])
    assert plan.n_bytes == 5
    assert plan.hash == plan_documents([tmp_path]).hash
    assert plan.hash != plan_documents([tmp_path / "b", tmp_path / "a"]).hash
    (tmp_path / "b").write_text("3456")
    assert plan.hash != plan_documents([tmp_path]).hash


def test_reading_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12")
    plan = plan_documents([tmp_path])
    assert len([*plan.read(), *plan.read()]) == 2
    assert (plan.counts.n_documents, plan.counts.n_bytes) == (1, 2)


def test_notes_are_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff")
    plan = plan_documents([tmp_path])
    list(plan.read())
    assert plan.counts.notes() == {
        "n_skipped_empty": 0,
        "n_duplicates": 0,
        "n_invalid_utf8": 1,
        "n_bad_rows": 0,
        "n_unfinished": 0,
    }


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
def test_what_is_not_blank_comes_out_once_and_unchanged(texts: list[bytes]) -> None:
    files = tuple(PlannedFile("-", f"s{at}", 0, "raw", "", data) for at, data in enumerate(texts))
    plan = DocumentPlan(files, skip_bad_rows=False)
    found: list[bytes] = []
    try:
        found = [document.data for document in plan.read()]
    except TextError:
        found = []
    boms = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
    wanted = [t for t in dict.fromkeys(texts) if t.strip() and t not in boms]
    assert [t for t in wanted if not t.startswith(boms)] == [
        t for t in found if not t.startswith(boms)
    ]
    assert plan.counts.n_bytes == sum(map(len, found))


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4))
def test_any_json_row_is_text_or_a_named_problem(value: Any) -> None:
    from sae_core import text_files  # noqa: PLC0415 - a private of the module

    for row in (value, {"text": value}):
        found = text_files._json_row(1, json.dumps(row).encode())
        assert (found.text is None) == bool(found.problem)
