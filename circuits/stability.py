"""How surely an automaton is found again: discovery repeated on random halves of the documents.

1. The documents that are not held out are cut in two at random, again and again; both halves of a cut
   are read, so that every document counts alike.
2. The pairs of features of each half are counted and tested anew, and automata are looked for in it.
3. An automaton's stability is the mean over the halves of the best Jaccard similarity of its features
   with an automaton of its kind. Half a text shows less than the whole: what is rare falls below the
   least support there, so that stability is rather too low than too high.

Source: Meinshausen and Buehlmann 2010, "Stability Selection"; Shah and Samworth 2013 (halves in pairs).
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from circuits.edge_tables import find_edges, read_pairs
from circuits.intervals import documents_of, n_documents
from circuits.shape import Text
from sae_core.gather_memory import room_here
from sae_core.running_sums import count_into
from sae_core.statistics import NATS_UNIT
from sae_core.store import select_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from circuits.assemble import Draft

STABILITY = "stability"
HALVES_SEED = 0


def half_texts(text: Text, n_halves: int) -> Iterator[tuple[pl.DataFrame, Text]]:
    """Give random halves of a text, each with the edges of its own graph.

    Args:
        text: of two documents at least; of one there is no half, and none is given.
        n_halves: how many; two that follow each other share no document.

    Yields:
        Edges, best first, and the text they were counted on.
    """
    document, n = documents_of(text.tokens), n_documents(text.tokens)
    for at in range(n_halves if n > 1 else 0):
        order = np.random.default_rng([HALVES_SEED, at // 2]).permutation(n)
        chosen = np.isin(np.arange(n), order[: n // 2], invert=at % 2 == 1)
        yield _counted(text, chosen[document])


def stability(
    found: Sequence[Draft], halves: Iterable[Sequence[Draft]], say: Callable[[str], None]
) -> list[float | None]:
    """Give how surely automata are found again.

    Args:
        found: on all of the text.
        halves: what was found on each half.
        say: is told of each half.

    Returns:
        One number in [0, 1] an automaton; None where there is no half.
    """
    overlaps: list[list[float]] = []
    for at, again in enumerate(halves, start=1):
        overlaps.append([best_overlap(one, again) for one in found])
        say(f"Half {at} of the documents: {len(again)} automata.")
    if not overlaps:
        return [None] * len(found)
    return [float(value) for value in np.mean(overlaps, axis=0)]


def best_overlap(one: Draft, others: Iterable[Draft]) -> float:
    """Give the best Jaccard similarity of features with another automaton of the same kind."""
    sets = (other.features for other in others if other.kind == one.kind)
    return max((len(one.features & of) / len(one.features | of) for of in sets), default=0.0)


def _counted(text: Text, keep: NDArray[np.bool_]) -> tuple[pl.DataFrame, Text]:
    """Count the pairs of some tokens of a text anew."""
    tokens = select_tokens(text.tokens, keep)
    sizes = len(text.mean_act), len(text.token_strs)
    with TemporaryDirectory() as scratch:
        count_into(Path(scratch), tokens, sizes, room_here())
        sums = read_pairs(Path(scratch))
    mean_act = sums.act_sum / NATS_UNIT / np.maximum(sums.n_fires, 1)
    return find_edges(sums).edges, Text(tokens, mean_act, text.token_strs)
