"""Documents: files, folders, globs and standard input -> bytes, one document at a time.

1. `plan_documents` lists what there is to read, with sizes, and refuses what cannot be read before
   any work is done: missing paths, folders without text, pipes, devices, tables without texts.
2. `DocumentPlan.read` gives a document at a time. A file is one document, a row of a `.jsonl`
   or `.parquet` is one; `.gz` and `.zst` are read through. Bytes are kept as they are.
3. Blank documents and those read before (same bytes) are left out; `ReadCounts` says how many, and
   names the files that could not be read to their end.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import json
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sae_core.errors import TextError
from sae_core.text_files import (
    READ_BYTES,
    TEXT_COLUMN,
    PlannedFile,
    check_head,
    joined,
    shown,
    table_rows,
    unreadable,
    whole_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

STDIN = "-"
_PACKINGS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_BOMS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Document:
    """One text, as its bytes."""

    source: str
    """Where it is from: the path as given, with `#row` (from 1) for a row of a table, or what the
    table's own column `source` says."""

    data: bytes
    """Its bytes, unchanged."""

    sha256: str
    """64 hex digits over `data`."""


@dataclass
class ReadCounts:
    """What was read and what was left out; filled while reading."""

    n_documents: int = 0
    """Documents given out."""

    n_bytes: int = 0
    """Their bytes."""

    n_skipped_empty: int = 0
    """Documents left out for holding nothing but white space."""

    n_duplicates: int = 0
    """Documents left out for having the bytes of an earlier one."""

    n_invalid_utf8: int = 0
    """Documents given out that are not valid UTF-8."""

    n_bad_rows: int = 0
    """Rows left out by `skip_bad_rows`."""

    unfinished: dict[str, str] = field(default_factory=dict)
    """Source of each file not read to its end, and why."""

    def notes(self) -> dict[str, int]:
        """Give the counts of what was left out or odd, as the manifest keeps them."""
        return {
            "n_skipped_empty": self.n_skipped_empty,
            "n_duplicates": self.n_duplicates,
            "n_invalid_utf8": self.n_invalid_utf8,
            "n_bad_rows": self.n_bad_rows,
            "n_unfinished": len(self.unfinished),
        }

    def sentences(self) -> list[str]:
        """Say what was left out or odd, a sentence each; empty when all is plain."""
        counted = (
            (self.n_skipped_empty, "empty or blank, left out"),
            (self.n_duplicates, "with the same bytes as an earlier one, counted once"),
            (self.n_invalid_utf8, "not valid UTF-8, bytes kept as they are"),
        )
        said = [f"{_counted(n, 'document')} {what}" for n, what in counted if n]
        if self.n_bad_rows:
            said.append(f"{_counted(self.n_bad_rows, 'row')} without text, left out")
        return said + [
            f"{shown(name)} not finished: {why}" for name, why in self.unfinished.items()
        ]


@dataclass
class DocumentPlan:
    """What will be read, in order."""

    files: tuple[PlannedFile, ...]

    skip_bad_rows: bool
    """Leave out and count the rows of tables that hold no text, instead of stopping."""

    counts: ReadCounts = field(default_factory=ReadCounts)
    """What the last `read` gave and left out so far."""

    @property
    def n_bytes(self) -> int:
        """Size of all files as they lie on disk."""
        return sum(file.n_bytes for file in self.files)

    @property
    def hash(self) -> str:
        """sha256 over sources, sizes and order; standard input counts by its content.

        A table that names its documents counts by its name alone: its place is written nowhere.
        """
        digest = hashlib.sha256()
        for file in self.files:
            seen = hashlib.sha256(file.data).hexdigest() if file.data is not None else ""
            name = Path(file.source).name if file.has_sources else file.source
            digest.update(json.dumps([name, file.n_bytes, seen]).encode())
        return digest.hexdigest()

    def read(self) -> Iterator[Document]:
        """Read the documents, one at a time, each set of bytes once; counts start anew.

        Yields:
            Documents in the plan's order.

        Raises:
            TextError: a file vanished, a row is bad, or all documents are empty.
        """
        self.counts = counts = ReadCounts()
        seen: set[bytes] = set()
        for file in self.files:
            for source, data in _texts_of(file, counts, skip_bad_rows=self.skip_bad_rows):
                digest = hashlib.sha256(data)
                if _is_blank(data):
                    counts.n_skipped_empty += 1
                elif digest.digest() in seen:
                    counts.n_duplicates += 1
                else:
                    seen.add(digest.digest())
                    _count(data, counts)
                    yield Document(source, data, digest.hexdigest())
        if not counts.n_documents:
            raise TextError(_why_nothing(self))


def plan_documents(
    texts: Sequence[str | os.PathLike[str]], *, skip_bad_rows: bool = False
) -> DocumentPlan:
    """List the files to read, with sizes, and refuse what cannot be read.

    Args:
        texts: files, folders (walked in order, without links and hidden files), globs, or `-` once.
        skip_bad_rows: leave out and count table rows that hold no text, instead of stopping.

    Returns:
        The files in the order given, those of a folder sorted by path.

    Raises:
        TextError: a path is missing, unreadable, no regular file or folder, or holds no text.
    """
    if not texts:
        raise TextError("no text was given; expected files, folders, globs or `-`; name one")
    names = [os.fspath(text) for text in texts]
    if names.count(STDIN) > 1:
        raise TextError("`-` was given twice; standard input can be read once; give it once")
    files = tuple(file for name in names for file in _planned(name))
    return DocumentPlan(files, skip_bad_rows)


def _planned(name: str) -> list[PlannedFile]:
    if name == STDIN:
        data = joined(iter(lambda: sys.stdin.buffer.read(READ_BYTES), b""), "standard input")
        return [PlannedFile(STDIN, STDIN, len(data), "raw", "", data)]
    if os.path.lexists(name) or not glob.has_magic(name):
        return _planned_path(name)
    matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - a str keeps odd bytes
    if not matches:
        raise TextError(f"{shown(name)} matches nothing; expected a glob that does; check it")
    return [file for match in matches for file in _planned_path(match)]


def _planned_path(name: str) -> list[PlannedFile]:
    if not stat.S_ISDIR(_status(name).st_mode):
        return [_planned_file(name)]
    files = [_planned_file(path) for path in _walk(name)]
    if not files:
        raise TextError(
            f"{shown(name)} is a folder without text (hidden files and links do not count); "
            "expected files in it; give another"
        )
    return files


def _walk(folder: str) -> Iterator[str]:
    """Give the files under a folder in sorted order, neither hidden ones nor links."""

    def refuse(err: OSError) -> None:
        raise unreadable(str(err.filename or folder), err)

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(root, name)  # noqa: PTH118 - a Path would change the path as given
            if not name.startswith(".") and not Path(path).is_symlink():
                yield path


def _planned_file(path: str) -> PlannedFile:
    status = _status(path)
    if not stat.S_ISREG(status.st_mode):
        raise TextError(
            f"{shown(path)} is {_kind_of_node(status.st_mode)}; expected a file or a folder; "
            "pipe it in with `-` if it is meant"
        )
    if not os.access(path, os.R_OK):
        raise unreadable(path, PermissionError(13, "Permission denied"))
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    packing = _PACKINGS.get(suffixes.pop(), "") if suffixes and suffixes[-1] in _PACKINGS else ""
    kind = _KINDS.get(suffixes[-1], "raw") if suffixes else "raw"
    file = PlannedFile(path, _printable_source(path), status.st_size, kind, packing)
    return check_head(file)


def _texts_of(
    file: PlannedFile, counts: ReadCounts, *, skip_bad_rows: bool
) -> Iterator[tuple[str, bytes]]:
    """Give (source, bytes) of each document in a file."""
    if file.data is not None:
        yield file.source, file.data
    elif file.kind == "raw":
        yield file.source, whole_text(file, counts.unfinished)
    else:
        for row in table_rows(file, counts.unfinished):
            if row.text is not None:
                yield row.source or f"{file.source}#{row.number}", row.text
            elif skip_bad_rows:
                counts.n_bad_rows += 1
            else:
                raise TextError(
                    f"{shown(file.path)}, row {row.number}: {row.problem}; expected a string in "
                    f"{TEXT_COLUMN!r}; mend the row, or leave such rows out with --skip-bad-rows"
                )


def _is_blank(data: bytes) -> bool:
    bom = next((mark for mark in _BOMS if data.startswith(mark)), b"")
    return not data.removeprefix(bom).strip()


def _count(data: bytes, counts: ReadCounts) -> None:
    counts.n_documents += 1
    counts.n_bytes += len(data)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        counts.n_invalid_utf8 += 1


def _why_nothing(plan: DocumentPlan) -> str:
    first, n_files = shown(plan.files[0].path), len(plan.files)
    which = first if n_files == 1 else f"{first} and {n_files - 1:,} more"
    why = "; ".join(plan.counts.sentences()) or "no rows"
    return f"{which}: no text ({why}); expected a document that is not empty; give another"


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _status(path: str) -> os.stat_result:
    try:
        return Path(path).stat()
    except (OSError, ValueError) as err:
        raise unreadable(path, err) from err


_NODE_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def _kind_of_node(mode: int) -> str:
    return next((name for is_kind, name in _NODE_KINDS if is_kind(mode)), "no regular file")


def _printable_source(path: str) -> str:
    """Give the path as it is, or, when it is no UTF-8, with its odd bytes escaped."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return shown(path)
    return path
