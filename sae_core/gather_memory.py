"""How much memory a gather may take: how many tokens wait until they are counted together.

1. Counting many tokens at once is faster. It takes COUNTED bytes for each feature that fires, and
   somewhat more than the tables that come out, whose size nobody knows before.
2. Under a limit, a part of the first shard is counted on trial; from then on each group tells what
   the next one will take. Tokens are counted while there is still room for it, and in pieces where
   there is not. Sums are whole numbers, so that no byte of a run depends on where those begin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_core.counting import has_square
from sae_core.errors import ModelError, StoreError
from sae_core.memory import (
    Free,
    free_large_blocks_at_once,
    free_memory,
    megabytes,
    return_freed_memory,
    taken_memory,
)
from sae_core.summed_files import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sae_core.statistics import Statistics

GROUP_ENTRIES = 1 << 23  # features that fire, of shards counted together: 100 MB that wait
COUNTED = 80  # bytes for each of them while they are counted; measured, as is the next
TABLES = 1.5  # times the tables that come out, with what is packed to be written
SPARE = 200 << 20  # for the next shard on its way through the model, and what allocators keep
LEAST = 250 << 20  # beside model and dictionary: a batch of windows, compiled loops
A_FEATURE = 115 << 10  # of a small dictionary: its share of one shard, and of the tables
MOST_FEATURES = 4096  # with more, few more pairs come
MARGIN = 100 << 20  # allocators take more at one time than at another
LEAST_LEFT = 16 << 20
PIECES = 2  # smaller pieces than would just fit: from each feature that fires come more rows
A_ROW = 160  # of sums that are added up
FEWEST_ROWS = 1 << 14


class Room:
    """What a limit on the memory of this process leaves for counting."""

    def __init__(self, limit: Free | None = None) -> None:
        """Start with the bytes that the process may take in all; None does not look at memory."""
        self.limit = limit
        self._an_entry = 0.0

    @property
    def is_told(self) -> bool:
        """Whether it is known what counting takes; without a limit it need not be."""
        return self.limit is None or self._an_entry > 0

    def learn(self, counted: Statistics, n_entries: int) -> None:
        """See what came out of counting tokens on which so many features fire."""
        if n_entries:
            self._an_entry = COUNTED + TABLES * counted.n_bytes / n_entries

    def n_entries(self, n_next: int) -> int:
        """Give after how many features that fire counting begins, when n_next more come at once."""
        if self.limit is None or not self._an_entry:
            return GROUP_ENTRIES
        room = int(max(0, self._left(self.limit) - SPARE) / self._an_entry)
        return min(GROUP_ENTRIES, room - n_next)

    def n_rows(self) -> int:
        """Give how many rows of sums may be added up together."""
        if self.limit is None:
            return ROWS
        return min(ROWS, max(FEWEST_ROWS, self._left(self.limit) // A_ROW))

    def n_at_once(self, n_entries: int) -> int:
        """Give on how many of n_entries features that fire counting goes on at once.

        Raises:
            StoreError: there is next to no room.
        """
        if self.limit is None:
            return n_entries
        left = self._left(self.limit)
        if self._an_entry * n_entries <= left:
            return n_entries
        if left < LEAST_LEFT:
            raise StoreError(
                f"{megabytes(left)} of memory are left for counting, {self.limit.limit} allows "
                f"{megabytes(self.limit.n_bytes)} in all; allow more, and run the same command "
                "again: what was finished is kept"
            )
        return int(left / self._an_entry / PIECES)

    @staticmethod
    def _left(limit: Free) -> int:
        return_freed_memory()
        return max(0, limit.n_bytes - MARGIN - taken_memory())


def room_here() -> Room:
    """Give the room that the machine leaves, or the limits that are set on this process."""
    free = free_memory()
    return Room(None if free is None else Free(taken_memory() + free.n_bytes, free.limit))


def room_of(
    budget: int | None, d_sae: int, say: Callable[[str], None], free: Free | None = None
) -> Room:
    """Say what memory a gather takes, and give the room for its counts.

    Args:
        budget: bytes that this process may take in all; None leaves it to the machine.
        d_sae: features of the dictionary.
        say: is told one line; model and dictionary are loaded.
        free: memory that can be taken; None asks for it.

    Raises:
        ModelError: the budget is below the least; nothing was begun.
    """
    free, taken = free or free_memory(), taken_memory()
    least = taken + LEAST + A_FEATURE * min(d_sae, MOST_FEATURES)
    way = f"in a square of {d_sae:,} x {d_sae:,}" if has_square(d_sae) else "a feature at a time"
    line = (
        f"pairs of features are counted {way}; with the model and the dictionary "
        f"{megabytes(taken)} of memory are taken, about {megabytes(least)} are the least"
    )
    if budget is not None and budget < least:
        raise ModelError(
            f"{line}, and --memory allows {megabytes(budget)}; allow more, or take a smaller "
            "dictionary; nothing was begun, and what was finished is kept"
        )
    limits = [] if free is None else [Free(taken + free.n_bytes, free.limit)]
    if budget is not None:
        limits.append(Free(budget, "--memory"))
        free_large_blocks_at_once()
    limit = min(limits, key=lambda one: one.n_bytes, default=None)
    say(line if limit is None else f"{line}; {limit.limit} allows {megabytes(limit.n_bytes)}")
    return Room(limit)
