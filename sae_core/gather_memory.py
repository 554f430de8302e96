"""How much memory a gather takes, told before it starts, and how it is kept within a budget.

1. What is there already: the program, the model and the dictionary.
2. What reading takes: a batch of windows in the model and the dictionary, compiled loops.
3. Tokens that wait to be counted, their counting, and the sums. Sums are whole numbers, so that not
   a byte depends on how many tokens are counted together: within a budget fewer wait.

Two ways to count lagged pairs: a square of counters where it fits into the cache, sorted rows for
larger dictionaries. Bytes are upper bounds of what was measured on text with 512 to 4,096 features;
sums over more text than waits at once go on growing, ever more slowly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sae_core import running_sums
from sae_core.counting import has_square
from sae_core.errors import ModelError
from sae_core.memory import Free, free_memory, megabytes, taken_memory

if TYPE_CHECKING:
    from collections.abc import Callable

READING = 100 << 20  # a batch, its product with the encoder, compiled loops
A_TOKEN = 88  # its columns, as they wait and joined
AN_ENTRY = 68  # a feature that fires on a token: the same, its part of the counts and of the sums
BYTES_A_TOKEN = 2  # of text, at least, on the whole; base64 and Chinese have 1.1
L0 = 64  # features that fire on a token, where the dictionary does not fix it
ADVICE = "take a smaller model or dictionary, or allow more"


class GatherNeed(NamedTuple):
    """What a gather takes."""

    there: int
    """Bytes that the process has now, with model and dictionary."""

    an_entry: int
    """Bytes for each feature that fires and waits to be counted, its share of a token included."""

    n_least: int
    """Features that fire in one shard, which is counted as a whole."""

    n_most: int
    """Features that are counted together where memory is ample."""

    def total(self, n_entries: int) -> int:
        """Give the bytes of the process with so many features counted together."""
        return self.there + READING + self.an_entry * n_entries


def gather_need(n_tokens: int, *, shard_tokens: int, d_sae: int, k: int | None) -> GatherNeed:
    """Estimate what gathering takes, with model and dictionary loaded.

    Args:
        n_tokens: of the text, at most.
        shard_tokens: tokens of a shard, at most.
        d_sae: features of the dictionary.
        k: those that fire on a token; None where that is not fixed.
    """
    l0 = k or min(d_sae, L0)
    n_least = l0 * min(n_tokens, shard_tokens)
    n_most = min(l0 * n_tokens, running_sums.GROUP_ENTRIES)
    return GatherNeed(taken_memory(), AN_ENTRY + A_TOKEN // l0, n_least, n_most)


def entries_at_once(
    need: GatherNeed,
    *,
    d_sae: int,
    budget: int | None,
    say: Callable[[str], None],
    free: Free | None = None,
) -> int:
    """Say what is needed and what is there; give how many features may wait to be counted.

    Args:
        need: of the gather.
        d_sae: features of the dictionary.
        budget: bytes that the process may take in all; None leaves it to the machine.
        say: is told one line.
        free: memory that can still be taken; None asks for it.

    Returns:
        Features that fire, of tokens that are counted together.

    Raises:
        ModelError: not even one shard fits; nothing was begun.
    """
    limit = _limit(need, budget, free or free_memory())
    way = f"a square of {d_sae:,} x {d_sae:,} counters" if has_square(d_sae) else "sorted rows"
    line = f"gathering takes about {megabytes(need.total(need.n_most))} of memory, counts in {way}"
    if limit is None:
        say(line)
        return need.n_most
    allowed = f"{limit.limit} allows {megabytes(limit.n_bytes)}"
    if need.total(need.n_least) > limit.n_bytes:
        raise ModelError(
            f"gathering takes {megabytes(need.total(need.n_least))} of memory at the least, and "
            f"{allowed}; {ADVICE}; nothing was begun, and what was finished is kept"
        )
    n_entries = min(need.n_most, (limit.n_bytes - need.total(0)) // need.an_entry)
    if n_entries < need.n_most:
        allowed += (
            f": {n_entries:,} firing features are counted at once instead of {need.n_most:,}, "
            "with the same result"
        )
    say(f"{line}; {allowed}")
    return n_entries


def _limit(need: GatherNeed, budget: int | None, free: Free | None) -> Free | None:
    """Give the bytes that the process may take in all, and who says so."""
    found = [] if free is None else [Free(need.there + free.n_bytes, free.limit)]
    found += [] if budget is None else [Free(budget, "--memory")]
    return min(found, key=lambda limit: limit.n_bytes, default=None)
