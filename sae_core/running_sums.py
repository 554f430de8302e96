"""The sums of a growing run: counted many shards at a time, whole again after a crash.

1. A finished shard's tokens wait in memory until there are enough of them, or no more room: counting
   many at once writes each pair of features once, and not once a shard.
2. Then they are counted, and the sums are kept in the last of these shards' folder under `parts/`.
3. A run that goes on reads the waiting shards' tokens back. Sums are whole numbers, so that it does
   not matter to a byte where the groups begin.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from sae_core import statistics
from sae_core.counting import find_blocks
from sae_core.files import read_parquet
from sae_core.gather_memory import Room
from sae_core.schema import TokenTable
from sae_core.store import PARTS, read_token_file, select_tokens, write_tokens
from sae_core.summed_files import add_up

if TYPE_CHECKING:
    from sae_core.schema import GatherSettings
    from sae_core.statistics import Statistics

TRIAL = 16  # part of the first tokens that is counted to see what counting takes
TRIAL_ENTRIES = 1 << 16  # features that fire there, at most


class RunningSums:
    """The sums of the finished shards of one run."""

    def __init__(self, run: Path, settings: GatherSettings, room: Room | None = None) -> None:
        """Start with nothing; `room` tells how much memory there is, None does not look at it."""
        self.run = run
        self.settings = settings
        self.room = room or Room()
        self._sizes = settings.d_sae, settings.d_vocab
        self._counted: list[Path] = []
        self._waiting: list[TokenTable] = []

    def restore(self, shards: list[str]) -> None:
        """Take up the finished shards of a run that goes on, in text order."""
        for name in shards:
            part = self.run / PARTS / name
            if statistics.is_saved(part / "statistics"):
                self._counted.append(part / "statistics")
                self._waiting = []
            else:
                self._waiting.append(self._read_back(name))

    def count_again(self, shards: list[str], folder: Path) -> None:
        """Count shards that were counted together before, and write their sums to a folder."""
        self._waiting = [self._read_back(name) for name in shards]
        self._save_waiting(folder)

    def add(self, name: str, tokens: TokenTable) -> None:
        """Add a shard whose tokens are written.

        Args:
            name: of the shard.
            tokens: those that are counted, without the held-out documents.
        """
        part = self.run / PARTS / name
        self.keep(name, tokens)
        _try(tokens, self._sizes, self.room)
        self._waiting.append(tokens)
        n_waiting = sum(len(table.features) for table in self._waiting)
        if n_waiting >= self.room.n_entries(len(tokens.features)):  # with one more like this
            self._save_waiting(part / "statistics")
            self._counted.append(part / "statistics")
            self._waiting = []

    def keep(self, name: str, tokens: TokenTable) -> None:
        """Write what a shard is counted from, where its own file of tokens holds no activations."""
        if not self.settings.keep_acts:
            write_tokens(self.run / PARTS / name / "tokens.parquet", tokens, keep_acts=True)

    def save(self, folder: Path) -> None:
        """Count what waits, add up everything and write it to a folder."""
        if not self._counted:
            self._save_waiting(folder)
            return
        with TemporaryDirectory(prefix=".", dir=self.run / PARTS) as scratch:
            parts = list(self._counted)
            if self._waiting:
                parts.append(Path(scratch))
                self._save_waiting(parts[-1])
            add_up(parts, folder, n_rows=self.room.n_rows())

    def _save_waiting(self, folder: Path) -> None:
        count_into(folder, joined_tables(self._waiting), self._sizes, self.room)

    def _read_back(self, name: str) -> TokenTable:
        part = self.run / PARTS / name
        if not self.settings.keep_acts:
            return read_token_file(part / "tokens.parquet")
        tokens = read_token_file(self.run / f"tokens/{name}.parquet")
        documents = read_parquet(part / "documents.parquet")
        held_out = documents.filter(documents["held_out"])["doc_id"].to_numpy()
        return select_tokens(tokens, ~np.isin(tokens.doc_ids, held_out))


def count_into(folder: Path, tokens: TokenTable, sizes: tuple[int, int], room: Room) -> None:
    """Count tokens, in as many pieces as there is room for, and write their sums.

    Args:
        folder: of the sums; it is made.
        tokens: in text order.
        sizes: d_sae and d_vocab.
        room: how much memory there is.

    Raises:
        StoreError: as of `statistics.collect`, or there is next to no room.
    """
    _try(tokens, sizes, room)
    pieces = find_blocks(tokens, room.n_at_once(len(tokens.features)))
    if len(pieces) == 1:
        statistics.save(_collected(tokens, sizes, room), folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=folder) as scratch:
        parts = [Path(scratch) / str(at) for at in range(len(pieces))]
        places = np.arange(len(tokens.doc_ids))
        for part, piece in zip(parts, pieces, strict=True):
            inside = (places >= piece.start) & (places < piece.stop)
            statistics.save(_collected(select_tokens(tokens, inside), sizes, room), part)
        add_up(parts, folder, n_rows=room.n_rows())


def _try(tokens: TokenTable, sizes: tuple[int, int], room: Room) -> None:
    """Count the first tokens to see what counting takes, unless that is known."""
    if room.is_told:
        return
    n = min(
        len(tokens.doc_ids) // TRIAL, int(np.searchsorted(tokens.indptr, TRIAL_ENTRIES, "right"))
    )
    _collected(select_tokens(tokens, np.arange(len(tokens.doc_ids)) < max(n, 1)), sizes, room)


def _collected(tokens: TokenTable, sizes: tuple[int, int], room: Room) -> Statistics:
    counted = statistics.collect(tokens, *sizes)
    room.learn(counted, len(tokens.features))
    return counted


def joined_tables(tables: list[TokenTable]) -> TokenTable:
    """Join token tables that follow each other."""
    counts = np.concatenate([np.diff(table.indptr) for table in tables])
    names = [name for name in TokenTable._fields if name != "indptr"]
    columns = {name: np.concatenate([getattr(table, name) for table in tables]) for name in names}
    return TokenTable(indptr=np.concatenate(([0], np.cumsum(counts))), **columns)
