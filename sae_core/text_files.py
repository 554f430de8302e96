"""The bytes of one text file: unpacked, and cut into rows where it is a table.

1. A plain file is read up to the size it had when planned; `.gz` and `.zst` are read through.
2. A `.jsonl` gives the field `text` of each line, a `.parquet` the column `text` of each row.
3. A file that ends too early gives what came before, and is noted as not finished, with the reason.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl
import zstandard

from sae_core.errors import TextError
from sae_core.tokens import token_str

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO

TEXT_COLUMN = "text"
SOURCE_COLUMN = "source"
READ_BYTES = 1 << 20
UNPACK_BYTES = 4 << 10  # zstd unpacks 4 KiB to at most 128 MiB, so memory stays bounded
MAX_DOCUMENT_BYTES = 2 << 30  # of an archive, a pipe or a row: no real one is larger; a bomb is
PARQUET_ROWS = 8192
MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}


@dataclass(frozen=True)
class PlannedFile:
    """One file to read."""

    path: str
    """As the operating system knows it, perhaps with escaped bytes; `-` is standard input."""

    source: str
    """The same, printable as UTF-8."""

    n_bytes: int
    """Its size when it was planned."""

    kind: str
    """`raw`, `jsonl` or `parquet`."""

    packing: str
    """`gzip`, `zstd` or empty."""

    data: bytes | None = None
    """What standard input held; None for a file."""

    has_sources: bool = False
    """Whether it is a table with a column `source` of its own, which then names its documents."""


@dataclass(frozen=True)
class Row:
    """One row of a table of texts."""

    number: int
    """From 1, as editors count lines."""

    text: bytes | None
    """Its text; None when it holds none."""

    problem: str = ""
    """Why it holds none."""

    source: str | None = None
    """Where the table says it is from; None where it does not."""


def whole_text(file: PlannedFile, unfinished: dict[str, str]) -> bytes:
    """Read a file that is one document.

    Args:
        file: what to read.
        unfinished: gets the source and the reason when the file ends too early.

    Raises:
        TextError: it cannot be opened, or unpacks to more than a document may hold.
    """
    chunks = _chunks(file, unfinished)
    return joined(chunks, file.path) if file.packing else b"".join(chunks)


def joined(chunks: Iterable[bytes], path: str) -> bytes:
    """Join the chunks of one document.

    Raises:
        TextError: together they are over `MAX_DOCUMENT_BYTES`.
    """
    parts: list[bytes] = []
    total = 0
    for chunk in chunks:
        parts.append(chunk)
        total += len(chunk)
        _check_size(total, path)
    return b"".join(parts)


def table_rows(file: PlannedFile, unfinished: dict[str, str]) -> Iterator[Row]:
    """Read a `.jsonl` or `.parquet` a row at a time.

    Args:
        file: what to read.
        unfinished: gets the source and the reason when the file ends too early.

    Raises:
        TextError: it cannot be opened, or is damaged.
    """
    return _parquet_rows(file) if file.kind == "parquet" else _jsonl_rows(file, unfinished)


def check_head(file: PlannedFile) -> PlannedFile:
    """Refuse an archive or a table that is none.

    Returns:
        The file, with what its head tells.

    Raises:
        TextError: the first bytes are of another format, or the column of texts is missing.
    """
    if file.kind == "parquet":
        schema = _schema_with_text(file)
        return replace(file, has_sources=schema.get(SOURCE_COLUMN) == pl.String)
    if file.packing and file.n_bytes:
        magic = MAGIC[file.packing]
        with _open(file.path) as opened:
            head = opened.read(len(magic))
        if not magic.startswith(head):
            raise TextError(
                f"{shown(file.path)} does not start as {file.packing} does (it starts with "
                f"{head.hex(' ')}); expected {magic.hex(' ')}; rename it if it is plain text"
            )
    return file


def unreadable(path: str, err: Exception) -> TextError:
    """Make the error for a path that the operating system refuses."""
    why = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
    hint = "give another, or change its permissions"
    if isinstance(err, FileNotFoundError | NotADirectoryError | ValueError):
        hint = "check the path"
    return TextError(f"{shown(path)} cannot be read ({why}); expected a file or a folder; {hint}")


def shown(path: str | bytes) -> str:
    """Give a path as a terminal may show it, odd bytes and control characters escaped."""
    return token_str(os.fsencode(path))


def _check_size(n_bytes: int, path: str) -> None:
    if n_bytes > MAX_DOCUMENT_BYTES:
        raise TextError(
            f"{shown(path)} holds a document of over {MAX_DOCUMENT_BYTES >> 20:,} MiB; "
            "expected less; split it into files"
        )


def _schema_with_text(file: PlannedFile) -> dict[str, pl.DataType]:
    if file.packing:
        raise TextError(
            f"{shown(file.path)} is a packed Parquet file; expected a plain one; unpack it first"
        )
    try:
        schema = pl.scan_parquet(file.path, glob=False).collect_schema()
    except (pl.exceptions.PolarsError, OSError, UnicodeError) as err:
        raise TextError(
            f"{shown(file.path)} is not a whole Parquet file ({_first_line(err)}); write it again"
        ) from err
    if schema.get(TEXT_COLUMN) not in (pl.String, pl.Binary):
        columns = ", ".join(f"{name} ({kind})" for name, kind in schema.items())
        raise TextError(
            f"{shown(file.path)} has the columns {token_str(columns.encode())}; "
            f"expected {TEXT_COLUMN!r} of type String; rename or cast yours"
        )
    return schema


def _jsonl_rows(file: PlannedFile, unfinished: dict[str, str]) -> Iterator[Row]:
    for number, line in enumerate(_lines(file, unfinished), start=1):
        if line.strip():
            yield _json_row(number, line)


def _lines(file: PlannedFile, unfinished: dict[str, str]) -> Iterator[bytes]:
    """Give the lines of a file; one that is cut off with its file is left out."""
    parts: list[bytes] = []
    for chunk in _chunks(file, unfinished):
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield joined([*parts, line], file.path)
            parts = []
        parts.append(rest)
        if not whole:
            _check_size(sum(map(len, parts)), file.path)
    if file.source not in unfinished:
        yield b"".join(parts)


def _json_row(number: int, line: bytes) -> Row:
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="surrogateescape")
        found = json.loads(text)
    except (ValueError, RecursionError) as err:
        return Row(number, None, f"it is not JSON ({token_str(_first_line(err).encode())})")
    if not isinstance(found, dict):
        return Row(number, None, f"it is a JSON {type(found).__name__}, no object")
    if TEXT_COLUMN not in found:
        names = ", ".join(sorted(found)[:8]).encode(errors="surrogatepass")
        return Row(number, None, f"it has the fields {token_str(names) or '(none)'}")
    value = found[TEXT_COLUMN]
    if not isinstance(value, str):
        return Row(number, None, f"its {TEXT_COLUMN!r} is of type {type(value).__name__}")
    return Row(number, _bytes_of(value))


def _bytes_of(text: str) -> bytes:
    try:
        return text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate, escaped in the JSON
        return text.encode("utf-8", errors="surrogatepass")


def _parquet_rows(file: PlannedFile) -> Iterator[Row]:
    names = (TEXT_COLUMN, SOURCE_COLUMN) if file.has_sources else (TEXT_COLUMN,)
    start, rows = 0, [(None,)]
    while rows:
        try:
            frame = pl.scan_parquet(file.path, glob=False).select(names)
            rows = frame.slice(start, PARQUET_ROWS).collect().rows()
        except (pl.exceptions.PolarsError, OSError) as err:
            raise TextError(
                f"{shown(file.path)} is damaged after row {start} ({_first_line(err)}); "
                "expected a whole Parquet file; write it again"
            ) from err
        for number, row in enumerate(rows, start=start + 1):
            yield _parquet_row(number, *row)
        start += len(rows)


def _parquet_row(number: int, value: Any, source: str | None = None) -> Row:
    if value is None:
        return Row(number, None, f"its {TEXT_COLUMN!r} is null")
    return Row(number, value.encode() if isinstance(value, str) else value, source=source)


def _chunks(file: PlannedFile, unfinished: dict[str, str]) -> Iterator[bytes]:
    """Give the bytes of a file, unpacked, and note why they end when they end too early."""
    with _open(file.path) as opened:
        read = _unpacked if file.packing else _plain
        yield from read(opened, file, unfinished)


def _plain(opened: IO[bytes], file: PlannedFile, unfinished: dict[str, str]) -> Iterator[bytes]:
    left = file.n_bytes
    while left and (chunk := opened.read(min(left, READ_BYTES))):
        left -= len(chunk)
        yield chunk
    if left:
        unfinished[file.source] = (
            f"it shrank from {file.n_bytes:,} to {file.n_bytes - left:,} bytes while it was read"
        )
    elif opened.read(1):
        unfinished[file.source] = (
            f"it grew while it was read; its first {file.n_bytes:,} bytes are kept"
        )


class _Decoder(Protocol):
    """What the decompressors of zlib and zstandard have in common."""

    @property
    def eof(self) -> bool:
        """Whether a whole member was read."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What follows that member."""
        ...

    def decompress(self, data: bytes, /) -> bytes:
        """Give what `data` unpacks to."""
        ...


def _gzip_decoder() -> _Decoder:
    return zlib.decompressobj(wbits=31)


def _zstd_decoder() -> _Decoder:
    decoder: _Decoder = zstandard.ZstdDecompressor().decompressobj()
    return decoder


_DECODERS: dict[str, Callable[[], _Decoder]] = {"gzip": _gzip_decoder, "zstd": _zstd_decoder}


def _unpacked(opened: IO[bytes], file: PlannedFile, unfinished: dict[str, str]) -> Iterator[bytes]:
    """Give what the archive's members hold, one after the other."""
    decoder: _Decoder | None = None
    try:
        while chunk := opened.read(UNPACK_BYTES):
            while chunk and (decoder or chunk.strip(b"\0")):  # zeros may pad the end
                decoder = decoder or _DECODERS[file.packing]()
                yield decoder.decompress(chunk)
                chunk = decoder.unused_data if decoder.eof else b""
                decoder = None if decoder.eof else decoder
    except (zlib.error, zstandard.ZstdError) as err:
        unfinished[file.source] = f"it is damaged ({_first_line(err)}); what came before is kept"
        return
    if decoder is not None:
        unfinished[file.source] = f"its {file.packing} data is cut off; what came before is kept"


def _open(path: str) -> IO[bytes]:
    """Open a regular file; never waits for the other end of a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return os.fdopen(handle, "rb")
        os.close(handle)
    except OSError as err:
        raise unreadable(path, err) from err
    raise TextError(f"{shown(path)} is no longer a regular file; expected one; run again")


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]
