"""The run directory: what one analysis knows, in files that other programs can read and write.

Left of it are models and torch, right of it graphs and automata; the only thing that passes is this:

1. `manifest.json` says what was read with which model and dictionary, and which shards are finished.
2. `vocabulary.parquet`, `documents.parquet` and `tokens/*.parquet` hold text, tokens and features.
3. `statistics/` holds sums that add up; `graph/` and `automata/` are made from them.

A run written by another program needs only a manifest of four keys and the three tables of step 2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sae_core.errors import StoreError
from sae_core.files import (
    parquet_columns,
    read_json,
    read_parquet,
    sha256_of,
    write_json,
    write_parquet,
)
from sae_core.schema import FORMAT, FORMAT_VERSION, Shard, TokenTable, checksum_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MANIFEST = "manifest.json"
PARTS = "parts"  # what an unfinished run keeps of each shard
REQUIRED_KEYS = ("format", "format_version", "d_sae", "d_vocab")
TOKEN_SCHEMA = {
    "doc_id": pl.UInt32,
    "window_id": pl.UInt32,
    "pos": pl.UInt32,
    "token_id": pl.UInt32,
    "byte_start": pl.Int64,
    "byte_end": pl.Int64,
}
ACT_SCHEMA = {
    "features": pl.List(pl.UInt32),
    "acts": pl.List(pl.Float32),
    "promotions": pl.List(pl.Float32),
}
DOCUMENT_SCHEMA = {
    "doc_id": pl.UInt32,
    "source": pl.String,
    "sha256": pl.String,
    "n_bytes": pl.Int64,
    "n_tokens": pl.Int64,
    "held_out": pl.Boolean,
}
STRANGER = "no shard of this run, though it would be read as one; move it elsewhere"
VOCABULARY_SCHEMA = {"token_id": pl.UInt32, "token_bytes": pl.Binary, "token_str": pl.String}


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says."""

    d_sae: int
    """Number of features."""

    d_vocab: int
    """Number of vocabulary entries."""

    settings: dict[str, Any] = field(default_factory=dict)
    """The settings that decide the run's bytes; empty for a run made elsewhere."""

    shards: tuple[Shard, ...] = ()
    """Finished shards, in text order."""

    files: dict[str, str] = field(default_factory=dict)
    """sha256 of each whole-run file, by path within the run."""

    complete: bool = True
    """Whether everything that was asked for is there."""

    notes: dict[str, Any] = field(default_factory=dict)
    """Counts that are no settings: skipped files, invalid bytes and the like."""

    package_version: str = ""
    """Version of the package that wrote it; empty for a run made elsewhere."""

    def to_json(self) -> dict[str, Any]:
        """Give the dict that is written, with its own checksum."""
        fields: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
        fields |= asdict(self)
        fields["shards"] = [asdict(shard) for shard in self.shards]
        return fields | {"checksum": checksum_of(fields)}


def write_manifest(run: Path, manifest: Manifest) -> None:
    """Write a run's manifest, whole or not at all."""
    write_json(run / MANIFEST, manifest.to_json())


def read_manifest(run: Path) -> Manifest:
    """Read a run's manifest.

    Raises:
        StoreError: missing, of another format, of a newer version, edited by hand, or incomplete.
    """
    path = run / MANIFEST
    if not run.is_dir():
        raise StoreError(
            f"{run} is not a run directory; make one with `circuits gather TEXT -o {run}`"
        )
    if not path.is_file():
        raise StoreError(
            f"{path} is missing, so {run} is not a run directory; "
            f"make one with `circuits gather TEXT -o {run}`"
        )
    found = read_json(path)
    _check_format(found, path)
    return _manifest_of(found, path)


def is_run(path: Path) -> bool:
    """Say whether a folder has a manifest, right or wrong."""
    return (path / MANIFEST).is_file()


def read_vocabulary(run: Path) -> pl.DataFrame:
    """Read the vocabulary: token_id, token_bytes, token_str; one row an id, in order."""
    return _read_table(run / "vocabulary.parquet", VOCABULARY_SCHEMA)


def read_documents(run: Path) -> pl.DataFrame:
    """Read the documents: doc_id, source, sha256, n_bytes, n_tokens, held_out."""
    return _read_table(run / "documents.parquet", DOCUMENT_SCHEMA)


def as_table(frame: pl.DataFrame, path: Path, schema: dict[str, Any]) -> pl.DataFrame:
    """Give the columns of a schema, in its types.

    Args:
        frame: what was read.
        path: where from.
        schema: column -> type.

    Raises:
        StoreError: a column is missing or holds what its type does not; file and column are named.
    """
    missing = [name for name in schema if name not in frame.columns]
    if missing:
        raise StoreError(f"{path} lacks the column {missing[0]!r}; expected {', '.join(schema)}")
    try:
        return frame.select(pl.col(name).cast(kind) for name, kind in schema.items())
    except pl.exceptions.PolarsError as err:
        raise StoreError(
            f"{path} has a column of the wrong type: {str(err).splitlines()[0]}"
        ) from err


def token_files(run: Path) -> list[Path]:
    """List a run's token shards in text order."""
    return sorted((run / "tokens").glob("*.parquet"))


def read_tokens(run: Path, *, held_out: bool | None = None) -> TokenTable:
    """Read the tokens of a run with the features that fire on each.

    Args:
        run: the run directory.
        held_out: True gives the held-out documents only, False the others, None all.

    Raises:
        StoreError: no tokens, no kept activations, or a shard that is cut or of other columns.
    """
    files = token_files(run)
    if not files:
        raise StoreError(f"{run}/tokens holds no shard; run `circuits gather` again")
    keep = _doc_mask(run, held_out) if held_out is not None else None
    frames = [_kept_rows(_token_frame(path), keep) for path in files]
    return _table_of(pl.concat(frames))


def has_acts(path: Path) -> bool:
    """Say whether a token shard holds features, acts and promotions.

    Raises:
        StoreError: it is missing, cut or not Parquet.
    """
    return set(ACT_SCHEMA) <= set(parquet_columns(path))


def iter_token_shards(
    run: Path, *, held_out: bool | None = None, every: int = 1
) -> Iterator[TokenTable]:
    """Give the tokens of a run a shard at a time, in text order; see `read_tokens`.

    Args:
        run: the run directory.
        held_out: as of `read_tokens`.
        every: 1 gives all shards, 2 the first, third, ...
    """
    keep = _doc_mask(run, held_out) if held_out is not None else None
    for path in token_files(run)[::every]:
        yield _table_of(_kept_rows(_token_frame(path), keep))


def read_token_file(path: Path) -> TokenTable:
    """Read one shard of tokens with the features that fire on each; see `read_tokens`."""
    return _table_of(_token_frame(path))


def refuse_not_finite(table: TokenTable) -> None:
    """Refuse activations and promotions that are no numbers, wherever a table comes from.

    Raises:
        StoreError: one is NaN or infinite; its document, position and feature are named.
    """
    for name in ("acts", "promotions"):
        values = getattr(table, name)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            row = int(np.searchsorted(table.indptr, bad[0], side="right")) - 1
            raise StoreError(
                f"document {table.doc_ids[row]}, position {table.pos[row]}: {name} of feature "
                f"{table.features[bad[0]]} is {values[bad[0]]}; expected a finite number; make the "
                "run again from numbers that are finite"
            )


def select_tokens(table: TokenTable, keep: NDArray[np.bool_]) -> TokenTable:
    """Take some rows of a token table, in their order.

    Args:
        table: n tokens.
        keep: (n,) which to take.
    """
    counts = np.diff(table.indptr)
    entries = np.repeat(keep, counts)
    columns = [column[keep] for column in table[:6]]
    lists = [values[entries] for values in table[7:]]
    starts = np.concatenate(([0], np.cumsum(counts[keep])))
    return TokenTable._make([*columns, starts, *lists])


def write_tokens(path: Path, table: TokenTable, *, keep_acts: bool) -> None:
    """Write one token shard.

    Args:
        path: `RUN/tokens/NNNNN.parquet`.
        table: tokens in text order.
        keep_acts: whether features, acts and promotions are written too.
    """
    columns: dict[str, Any] = dict(zip(TOKEN_SCHEMA, table[:6], strict=True))
    frame = pl.DataFrame(columns, schema=TOKEN_SCHEMA)
    if keep_acts:
        lists = zip(ACT_SCHEMA, table[7:], strict=True)
        frame = frame.with_columns(_list_column(name, table.indptr, v) for name, v in lists)
    write_parquet(path, frame)


@dataclass(frozen=True)
class FileCheck:
    """What `verify` found out about one file."""

    file: str
    """Path within the run."""

    ok: bool
    """Whether it is as it was written."""

    reason: str
    """Why not; empty when it is."""


def verify(run: Path) -> list[FileCheck]:
    """Check every file that the manifest names against its checksum.

    Args:
        run: the run directory.

    Returns:
        One row a file, the manifest's own first.
    """
    manifest = read_manifest(run)
    rows = [FileCheck(MANIFEST, ok=True, reason="")]
    if not manifest.complete:
        rows[0] = FileCheck(MANIFEST, ok=False, reason="not finished; run `circuits gather` again")
    wanted = {file: digest for shard in manifest.shards for file, digest in shard.sha256.items()}
    wanted |= manifest.files
    rows += [_check_file(run / file, file, digest) for file, digest in wanted.items()]
    shards = [f"tokens/{path.name}" for path in token_files(run)] if manifest.shards else []
    strangers = [file for file in shards if file not in wanted and manifest.complete]
    return rows + [FileCheck(file, ok=False, reason=STRANGER) for file in strangers]


def _check_file(path: Path, file: str, digest: str) -> FileCheck:
    if not path.is_file():
        return FileCheck(file, ok=False, reason="missing")
    if sha256_of(path) != digest:
        return FileCheck(file, ok=False, reason="its bytes are not those that were written")
    return FileCheck(file, ok=True, reason="")


def _check_format(found: Any, path: Path) -> None:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise StoreError(
            f'{path} does not say "format": "{FORMAT}", so it is not a run\'s manifest'
        )
    version = found.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise StoreError(f"{path} has format_version {version!r}; expected {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise StoreError(
            f"{path} has format_version {version}, newer than {FORMAT_VERSION}, "
            "the newest this program reads; upgrade sae-automata"
        )
    for key in ("d_sae", "d_vocab"):
        if not isinstance(found.get(key), int) or found[key] < 1:
            raise StoreError(f"{path} has {key} {found.get(key)!r}; expected a number >= 1")
    if "checksum" in found and found["checksum"] != checksum_of(found):
        raise StoreError(
            f"{path} was changed after it was written (its checksum does not fit); "
            "restore it, or gather again with --force"
        )


def _manifest_of(found: dict[str, Any], path: Path) -> Manifest:
    try:
        return Manifest(
            d_sae=found["d_sae"],
            d_vocab=found["d_vocab"],
            settings=dict(found.get("settings", {})),
            shards=tuple(Shard(**shard) for shard in found.get("shards", [])),
            files=dict(found.get("files", {})),
            complete=bool(found.get("complete", True)),
            notes=dict(found.get("notes", {})),
            package_version=str(found.get("package_version", "")),
        )
    except (TypeError, ValueError, KeyError) as err:
        raise StoreError(f"{path} has fields of the wrong kind: {err}") from err


def _read_table(path: Path, schema: dict[str, Any]) -> pl.DataFrame:
    return as_table(read_parquet(path), path, schema)


def _doc_mask(run: Path, held_out: bool) -> pl.Series:  # noqa: FBT001 - private
    documents = read_documents(run)
    return documents.filter(pl.col("held_out") == held_out)["doc_id"]


def _token_frame(path: Path) -> pl.DataFrame:
    frame = read_parquet(path)
    if "features" not in frame.columns:
        raise StoreError(
            f"{path} holds no activations (the run was made with --no-keep-acts); "
            "gather again with --keep-acts"
        )
    return as_table(frame, path, TOKEN_SCHEMA | ACT_SCHEMA)


def _kept_rows(frame: pl.DataFrame, keep: pl.Series | None) -> pl.DataFrame:
    return frame if keep is None else frame.filter(pl.col("doc_id").is_in(keep.implode()))


def _table_of(frame: pl.DataFrame) -> TokenTable:
    columns = [frame[name].to_numpy() for name in TOKEN_SCHEMA]
    indptr = np.zeros(len(frame) + 1, dtype=np.int64)
    np.cumsum(frame["features"].list.len().to_numpy(), out=indptr[1:])
    lists = [_flat(frame[name]) for name in ACT_SCHEMA]
    if len({len(values) for values in lists}) != 1:
        raise StoreError("features, acts and promotions of a token have different lengths")
    table = TokenTable._make([*columns, indptr, *lists])
    refuse_not_finite(table)
    return table


def _flat(column: pl.Series) -> Any:
    inner: Any = column.dtype
    kept = column.filter(column.list.len() > 0)
    return kept.explode().to_numpy() if len(kept) else np.empty(0, _NUMPY_OF[inner.inner])


_NUMPY_OF: dict[Any, Any] = {pl.UInt32: np.uint32, pl.Float32: np.float32}


def _list_column(name: str, indptr: Any, values: Any) -> pl.Series:
    lengths = np.diff(indptr)
    rows = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
    flat = pl.DataFrame({"row": rows, name: pl.Series(values)})
    grouped = flat.group_by("row", maintain_order=True).agg(pl.col(name))
    index = pl.DataFrame({"row": np.arange(len(lengths), dtype=np.uint32)})
    joined = index.join(grouped, on="row", how="left", maintain_order="left")
    return joined[name].fill_null([]).cast(ACT_SCHEMA[name]).alias(name)
