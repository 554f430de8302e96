"""Compiled loops that count pairs of features on neighbouring tokens, and nothing else.

Features are split by how often they fire. The loops seldom wait for memory: rows of tokens are read
in the order of the text, or ahead of their use.

1. *Frequent* features, GROUP at a time: a token's group is GROUP bytes, 1 where a feature fires. The
   bytes are added to the counters of each feature of the next token, in a few instructions for
   GROUP pairs. A counter is a byte; before it could overflow it is moved to 32 bits.
2. *Rare* features among themselves: the tokens are packed to their rare features, the places of
   each source are sorted, and the rows that follow them are added to one row of counters.

They belong to `kernels` and follow its conventions; every loop has a twin in `tests/naive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sae_core.kernels import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUP = 64  # features whose bytes are one line of the cache
FULL = 255  # of a counter of one byte
AHEAD = 128  # rows that are read ahead; they stay in the nearest cache
WORD = np.uint64(64)
ONE = np.uint64(1)
PRIME = np.uint64(67)  # the powers of 2 below 2^64 leave different remainders
BIT_OF = np.zeros(67, np.int64)
BIT_OF[[(1 << bit) % 67 for bit in range(64)]] = np.arange(64)


class Text(NamedTuple):
    """A token stream whose rows are the features that fire."""

    indptr: NDArray[np.int64]
    """(n + 1,) start of each token's features."""

    features: NDArray[np.uint32]
    """(nnz,) feature ids."""

    joined: NDArray[np.bool_]
    """(n,) whether the next token is in the same document."""

    rank: NDArray[np.uint32]
    """(d_sae,) place of each feature among all, the most frequent first."""


class Rare(NamedTuple):
    """The rare features of a token stream, by token and by feature."""

    rows: NDArray[Any]
    """Each token's number of rare features, then their ids; entry 0 is an empty row."""

    starts: NDArray[np.int64]
    """(d_sae + 1,) start of each feature's places; frequent features have none."""

    following: NDArray[Any]
    """(m,) for each place of a feature, in the order of the text: where in `rows` the next token's
    row is; 0 at the end of a document."""


class Sources(NamedTuple):
    """What the rows of rare sources are made of."""

    rare: Rare
    """The rare features, by token and by feature."""

    frequent: NDArray[np.uint32]
    """Ids of the frequent features, the most frequent first."""

    to_frequent: NDArray[np.uint32]
    """(n_groups, d_sae, GROUP) what count_to_group gave for the frequent features."""

    whole: NDArray[Any]
    """(n, d_sae) room for the counters of sources with long rows, all 0."""

    whole_at: NDArray[np.int64]
    """(d_sae,) which row of `whole` is a source's; -1 of one that has none there."""


class Counters(NamedTuple):
    """How often each feature came beside each feature of a group."""

    marks: NDArray[np.uint8]
    """(GROUP, GROUP + 1) which features of the group fire on each of GROUP tokens; the last column
    is for all other features."""

    small: NDArray[np.uint8]
    """(d_sae, GROUP) counts not yet in `counts`."""

    n_added: NDArray[np.uint8]
    """(d_sae,) how often a row of `small` was added to."""

    counts: NDArray[np.uint32]
    """(d_sae, GROUP) the counts."""


@compiled
def count_firings(features: NDArray[np.uint32], out: NDArray[np.int64]) -> None:
    """Add 1 to out[j] for each j in features."""
    for entry in range(len(features)):
        out[features[entry]] += 1


@compiled
def pack_rare(  # noqa: PLR0917 - a compiled loop takes arrays by position
    text: Text,
    begin: int,
    end: int,
    n_frequent: int,
    at: int,
    cursor: NDArray[np.int64],
    rare: Rare,
) -> None:
    """Write the rows of tokens begin..end - 1 from rare.rows[at] on, and their places.

    `cursor` (d_sae,) holds where each feature's places go, and their end afterwards.
    """
    rows = rare.rows
    for p in range(begin, end):
        head = at
        at += 1
        for entry in range(text.indptr[p], text.indptr[p + 1]):
            feature = text.features[entry]
            is_rare = text.rank[feature] >= n_frequent
            rows[at if is_rare else head] = feature  # no branch: it could not be predicted
            at += is_rare
        rows[head] = at - head - 1
        following = at if text.joined[p] else 0
        for entry in range(head + 1, at):
            feature = rows[entry]
            rare.following[cursor[feature]] = following
            cursor[feature] += 1


@compiled
def _mark(  # noqa: PLR0917 - a compiled loop takes arrays by position
    text: Text, group: int, begin: int, end: int, step: int, marks: NDArray[np.uint8]
) -> None:
    """Mark which features of the group fire on token p + step, in row p - begin."""
    marks[:] = 0
    for p in range(begin, end):
        if text.joined[p]:
            for entry in range(text.indptr[p + step], text.indptr[p + step + 1]):
                place = np.int64(text.rank[text.features[entry]]) - group * GROUP
                is_inside = (place >= 0) & (place < GROUP)  # no branch: it could not be predicted
                marks[p - begin, place if is_inside else GROUP] = 1


@compiled
def _add_marks(
    features: NDArray[Any], begin: Any, end: Any, marks: NDArray[np.uint8], counters: Counters
) -> None:
    """Add the marks (GROUP,) to the counters of features[begin:end]."""
    for entry in range(begin, end):
        j = features[entry]
        small = counters.small[j]
        for place in range(GROUP):
            small[place] += marks[place]
        counters.n_added[j] += np.uint8(1)
        if counters.n_added[j] == FULL:
            _empty(j, counters)


@compiled
def _empty(j: int, counters: Counters) -> None:
    """Move the small counters of feature j to its counts."""
    for place in range(GROUP):
        counters.counts[j, place] += counters.small[j, place]
    counters.small[j] = 0
    counters.n_added[j] = 0


@compiled
def count_from_group(text: Text, group: int, counters: Counters) -> None:
    """Count at [j, place] the tokens with the group's feature at p and any feature j at p + 1."""
    n = len(text.joined)
    for begin in range(0, n, GROUP):
        end = min(begin + GROUP, n)
        _mark(text, group, begin, end, 0, counters.marks)
        for p in range(begin, end):
            if text.joined[p]:
                first, last = text.indptr[p + 1], text.indptr[p + 2]
                _add_marks(text.features, first, last, counters.marks[p - begin], counters)
    for j in range(len(counters.counts)):
        _empty(j, counters)


@compiled
def count_to_group(text: Text, group: int, rare: Rare, counters: Counters) -> None:
    """Count at [i, place] the tokens with a rare feature i at p and the group's feature at p + 1."""
    n = len(text.joined)
    at = np.int64(1)
    for begin in range(0, n, GROUP):
        end = min(begin + GROUP, n)
        _mark(text, group, begin, end, 1, counters.marks)
        for p in range(begin, end):
            first = at + 1
            at = first + np.int64(rare.rows[at])
            if text.joined[p]:
                _add_marks(rare.rows, first, at, counters.marks[p - begin], counters)
    for i in range(len(counters.counts)):
        _empty(i, counters)


@compiled
def _find_ends(first: int, last: int, rare: Rare, ends: NDArray[np.int64]) -> None:
    """Fill ends[k - first] with where the row of place k ends.

    These reads do not wait for each other, and bring both ends of the rows near; additions would
    wait.
    """
    far = np.int64(0)
    for k in range(first, last):
        at = np.int64(rare.following[k])
        ends[k - first] = at + 1 + np.int64(rare.rows[at])
    for k in range(last - first):
        far |= np.int64(rare.rows[ends[k] - 1])
    ends[AHEAD] = far


@compiled
def _add_rare(source: int, rare: Rare, row: NDArray[Any], ends: NDArray[np.int64]) -> None:
    """Add the rare features that follow a source to row (d_sae,)."""
    for first in range(rare.starts[source], rare.starts[source + 1], AHEAD):
        last = min(first + AHEAD, rare.starts[source + 1])
        _find_ends(first, last, rare, ends)
        for k in range(first, last):
            for entry in range(np.int64(rare.following[k]) + 1, ends[k - first]):
                row[rare.rows[entry]] += np.uint8(1)


@compiled
def _touch_rare(
    source: int,
    rare: Rare,
    row: NDArray[Any],
    touched: NDArray[np.uint64],
    ends: NDArray[np.int64],
) -> None:
    """Do what _add_rare does, and set the bit of each target in touched."""
    for first in range(rare.starts[source], rare.starts[source + 1], AHEAD):
        last = min(first + AHEAD, rare.starts[source + 1])
        _find_ends(first, last, rare, ends)
        for k in range(first, last):
            for entry in range(np.int64(rare.following[k]) + 1, ends[k - first]):
                j = np.uint64(rare.rows[entry])
                row[j] += np.uint8(1)
                touched[j // WORD] |= ONE << (j % WORD)


@compiled
def size_rare_sources(begin: int, end: int, sources: Sources, sizes: NDArray[np.int64]) -> None:
    """Fill sizes[begin:end] with the number of features that follow each rare source.

    Long rows are counted for good; of the others the features are only told apart.
    """
    touched = np.zeros((len(sizes) + 63) // 64, np.uint64)
    ends = np.zeros(AHEAD + 1, np.int64)
    for i in range(begin, end):
        if sources.rare.starts[i] < sources.rare.starts[i + 1]:
            if sources.whole_at[i] >= 0:
                row = sources.whole[sources.whole_at[i]]
                _set_frequent(i, sources, row)
                _add_rare(i, sources.rare, row, ends)
                sizes[i] = (row > 0).sum()
            else:
                sizes[i] = _count_apart(i, sources, touched, ends)


@compiled
def _set_frequent(i: int, sources: Sources, row: NDArray[Any]) -> None:
    """Set the counters of frequent features in row (d_sae,)."""
    for place in range(len(sources.frequent)):
        count = sources.to_frequent[place // GROUP, i, place % GROUP]
        row[sources.frequent[place]] = count


@compiled
def _count_apart(
    i: int, sources: Sources, touched: NDArray[np.uint64], ends: NDArray[np.int64]
) -> int:
    """Give how many features follow source i; touched is all 0, before and after."""
    rare, n = sources.rare, 0
    for place in range(len(sources.frequent)):
        n += sources.to_frequent[place // GROUP, i, place % GROUP] > 0
    for first in range(rare.starts[i], rare.starts[i + 1], AHEAD):
        last = min(first + AHEAD, rare.starts[i + 1])
        _find_ends(first, last, rare, ends)
        for k in range(first, last):
            for entry in range(np.int64(rare.following[k]) + 1, ends[k - first]):
                j = np.uint64(rare.rows[entry])
                bit = ONE << (j % WORD)
                n += (touched[j // WORD] & bit) == 0
                touched[j // WORD] |= bit
    touched[:] = 0
    return n


@compiled
def fill_rare_sources(  # noqa: PLR0917 - a compiled loop takes arrays by position
    begin: int,
    end: int,
    sources: Sources,
    indptr: NDArray[Any],
    indices: NDArray[Any],
    data: NDArray[np.int64],
) -> None:
    """Write the targets and counts of rare sources begin..end - 1, sorted, where indptr says."""
    rare, d_sae = sources.rare, len(sources.whole_at)
    n_words = (d_sae + 63) // 64
    row = np.zeros(d_sae, sources.whole.dtype)
    touched, words = np.zeros(n_words, np.uint64), np.zeros(n_words, np.int64)
    ends = np.zeros(AHEAD + 1, np.int64)
    for i in range(begin, end):
        at = int(indptr[i])
        if rare.starts[i] == rare.starts[i + 1]:
            continue
        if sources.whole_at[i] >= 0:
            _write_all(at, int(indptr[i + 1]), sources.whole[sources.whole_at[i]], indices, data)
            continue
        _set_frequent(i, sources, row)
        for place in range(len(sources.frequent)):
            j = np.uint64(sources.frequent[place])
            touched[j // WORD] |= np.uint64(row[j] > 0) << (j % WORD)
        _touch_rare(i, rare, row, touched, ends)
        _write_touched(at, row, touched, words, indices, data)


@compiled
def _write_all(
    at: int, end: int, row: NDArray[Any], indices: NDArray[Any], data: NDArray[np.int64]
) -> None:
    """Write the end - at counters of row that are not 0."""
    j = 0
    while at < end:
        indices[at] = j
        data[at] = row[j]
        at += row[j] > 0  # no branch: it could not be predicted
        j += 1


@compiled
def _write_touched(  # noqa: PLR0917 - a compiled loop takes arrays by position
    at: int,
    row: NDArray[Any],
    touched: NDArray[np.uint64],
    words: NDArray[np.int64],
    indices: NDArray[Any],
    data: NDArray[np.int64],
) -> None:
    """Do what _write_all does where only counters with a bit in touched are not 0."""
    n = 0
    for word in range(len(touched)):
        words[n] = word
        n += touched[word] != 0  # no branch: it could not be predicted
    for k in range(n):
        word = words[k]
        bits = touched[word]
        touched[word] = 0
        while bits != 0:
            j = word * 64 + BIT_OF[(bits & (~bits + ONE)) % PRIME]
            indices[at] = j
            data[at] = row[j]
            row[j] = 0
            at += 1
            bits &= bits - ONE


@compiled
def place_group(
    counts: NDArray[np.uint32],
    cursor: NDArray[np.int64],
    indices: NDArray[Any],
    data: NDArray[np.int64],
) -> None:
    """Write column k of counts (d_sae, GROUP), without zeros, from cursor[k] on."""
    for j in range(len(counts)):
        for place in range(len(cursor)):
            if counts[j, place] > 0:
                indices[cursor[place]] = j
                data[cursor[place]] = counts[j, place]
                cursor[place] += 1
