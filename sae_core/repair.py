"""A damaged run -> the run as it was written; only what its checksums name is computed again.

1. The text is cut into the windows of before. Those of a damaged shard go through the model again,
   all others are left alone, bytes and times.
2. Sums that an unfinished run keeps of a group of shards are counted again from the shards.
3. Tables of the whole run are made again from the shards, and the damaged ones replaced.

Everything is made in a folder of its own first, and moved to its place only if it has the checksum
that the manifest gives: otherwise the text, the machine or its libraries are no longer the same.
"""

from __future__ import annotations

import shutil
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from sae_core.errors import StoreError, StoreMismatchError
from sae_core.files import sha256_of, write_atomic
from sae_core.running_sums import RunningSums
from sae_core.shards import counted_tokens, document_rows
from sae_core.store import MANIFEST, PARTS, STRANGER, read_token_file, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import polars as pl

    from sae_core.schema import Shard, TokenTable
    from sae_core.shards import ShardWriter
    from sae_core.store import Manifest
    from sae_core.window_stream import WindowRow

    WriteTables = Callable[[Path, list[pl.DataFrame]], None]
    """Writes the whole-run tables to a folder, from the documents of each shard and the sums there."""

SCRATCH = "repair"
SUMS = "statistics/"
FROM_SUMS = (SUMS, "features.parquet")


class Repaired(NamedTuple):
    """What a repair did."""

    files: tuple[str, ...]
    """Paths within the run that were damaged, and are whole."""

    n_tokens: int
    """Tokens that went through the model again."""


def refuse_damaged(run: Path) -> None:
    """Refuse to go on from files that are not as they were written.

    Raises:
        StoreError: one is not; it is named.
    """
    bad = damaged_files(run)
    if bad:
        raise StoreError(
            f"{run / bad[0]} is not as it was written; run the same `circuits gather` with --repair"
        )


def damaged_files(run: Path) -> list[str]:
    """Give the files that the manifest names and that are not as they were written."""
    return [
        one.file
        for one in verify(run)
        if not one.ok and one.file != MANIFEST and one.reason != STRANGER
    ]


class Repair:
    """The repair of one run: everything that is needed to make its files again."""

    def __init__(
        self, run: Path, manifest: Manifest, shards: ShardWriter, write_tables: WriteTables
    ) -> None:
        self.run = run
        self.manifest = manifest
        self.shards = shards
        self.write_tables = write_tables
        self.scratch = run / PARTS / SCRATCH
        self.sums = RunningSums(self.scratch, shards.settings, shards.sums.room)
        self.bad = damaged_files(run)

    def work(self, windows: Iterator[WindowRow]) -> Repaired:
        """Make the damaged files again.

        Args:
            windows: of the whole text.

        Raises:
            StoreMismatchError: what is computed now is not what was written then.
        """
        if not self.bad:
            return Repaired((), 0)
        bad_tables = set(self.bad) & set(self.manifest.files)
        needs_sums = any(file.startswith(FROM_SUMS) for file in bad_tables)
        documents, n_tokens = [], 0
        shutil.rmtree(self.scratch, ignore_errors=True)
        for shard, rows in self._cut(windows):
            n_tokens += self._repair_shard(shard, rows)
            if needs_sums:
                self.sums.add(shard.name, counted_tokens(rows, self._tokens(shard, rows)))
            documents.append(document_rows(rows))
        self._repair_groups()
        if bad_tables:
            made = self.scratch / "statistics"
            if needs_sums:
                self.sums.save(made)
            else:
                shutil.copytree(self.run / "statistics", made)
            self.write_tables(self.scratch, documents)
            self._install(bad_tables, self.manifest.files)
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self.manifest.complete:
            shutil.rmtree(self.run / PARTS, ignore_errors=True)
        return Repaired(tuple(self.bad), n_tokens)

    def _cut(self, windows: Iterator[WindowRow]) -> Iterator[tuple[Shard, list[WindowRow]]]:
        for shard in self.manifest.shards:
            rows = list(islice(windows, shard.n_windows))
            if len(rows) < shard.n_windows:
                raise StoreMismatchError(
                    f"{self.run} has more text than the inputs; give those that it was made from"
                )
            yield shard, rows

    def _repair_shard(self, shard: Shard, rows: list[WindowRow]) -> int:
        """Make the damaged files of a shard again; give the tokens that the model read for it."""
        bad = {file for file in self.bad if file in shard.sha256 and not _is_sum(file)}
        if not bad:
            return 0
        table = self.shards.compute(rows)
        self.shards.write_files(self.scratch, shard.name, rows, table)
        self.sums.keep(shard.name, counted_tokens(rows, table))
        self._install(bad, shard.sha256)
        return shard.n_tokens

    def _tokens(self, shard: Shard, rows: list[WindowRow]) -> TokenTable:
        if self.shards.settings.keep_acts:
            return read_token_file(self.run / f"tokens/{shard.name}.parquet")
        return self.shards.compute(rows)

    def _repair_groups(self) -> None:
        """Count again the groups of shards whose sums are damaged."""
        group: list[str] = []
        for shard in self.manifest.shards:
            group.append(shard.name)
            kept = {file for file in shard.sha256 if _is_sum(file)}
            if bad := kept & set(self.bad):
                folder = self.scratch / PARTS / shard.name / "statistics"
                again = RunningSums(self.run, self.shards.settings, self.sums.room)
                again.count_again(group, folder)
                self._install(bad, shard.sha256)
            group = [] if kept else group

    def _install(self, files: Iterable[str], digests: dict[str, str]) -> None:
        for file in sorted(files):
            made = self.scratch / file
            if not made.is_file() or sha256_of(made) != digests[file]:
                raise StoreMismatchError(
                    f"{self.run / file}, computed again, is not what was written: the text, this "
                    "machine or its libraries are others; gather the run again with --force"
                )

            def move(temporary: Path, made: Path = made) -> None:
                made.replace(temporary)

            write_atomic(self.run / file, move)


def _is_sum(file: str) -> bool:
    """Say whether a file of a shard belongs to the sums of its group."""
    return f"/{SUMS}" in file
