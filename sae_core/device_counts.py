"""Tables of pairs, counted with torch: for machines with a GPU, equal to the loops of `kernels`.

1. Firings are sorted by feature. Sources are taken in ranges that keep what is held within bounds:
   a range has at most CELLS places of a table of its sources by all features, and about PAIRS pairs.
2. Each firing is paired with the features of the next token. Equal triples (source, target, token
   between) are brought together by sorting; a transition adds up its triples.
3. Lagged pairs are added to a table of the range, a distance at a time.

All sums are whole numbers, so that the order in which a GPU adds makes no difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import torch
from scipy import sparse

from sae_core.devices import choose_device
from sae_core.kernels import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

CELLS = 1 << 24  # of a range's tables: 640 MB
PAIRS = 1 << 25  # of a range, or of one source that has more: about 2 GB while they are sorted
EXPANDED = 1 << 24  # pairs written out at once
NO_LAGS = (1, 0)


class Rows(NamedTuple):
    """Which features fire on each token."""

    starts: Tensor
    """(n,) start of each token's features."""

    sizes: Tensor
    """(n,) their number."""

    features: Tensor
    """(nnz,) feature ids, ascending within a token."""


class Firings(NamedTuple):
    """The firings of some sources, by source."""

    sources: Tensor
    """(m,) the features."""

    places: Tensor
    """(m,) the tokens that they fire on, ascending within a feature."""

    nats: Tensor
    """(m,) what each gave to the token that came, fixed point; 0 where not promoted."""


def pair_tables(
    stream: Stream,
    token_ids: NDArray[np.uint32],
    nats: NDArray[np.int64],
    lags: tuple[int, int],
    *,
    sizes: tuple[int, int],
    device: str,
) -> dict[str, pl.DataFrame]:
    """Count pairs of features on one token, on neighbouring ones and at the lags.

    Args:
        stream: n tokens.
        token_ids: (n,) their ids.
        nats: (nnz,) what each firing gave to the token that came, fixed point; 0 where not promoted.
        lags: least and greatest distance, in tokens, of the lagged pairs.
        sizes: numbers of features and of vocabulary entries.
        device: as for `devices.choose_device`.

    Returns:
        The tables `transitions`, `edge_tokens` and `coactivation` of `counting.count_block`.

    Raises:
        ModelError: there is no such device.
    """
    text = Text(stream, token_ids, nats, sizes, choose_device(device))
    transitions, edge_tokens = text.transitions(lags)
    return {
        "transitions": transitions,
        "edge_tokens": edge_tokens,
        "coactivation": text.coactivation(),
    }


def count_pairs(
    indptr: NDArray[np.integer[Any]],
    features: NDArray[np.uint32],
    doc_ids: NDArray[np.integer[Any]],
    d_sae: int,
    device: str,
) -> sparse.csr_array:
    """Count as `pair_counts.count_pairs` does, on a device."""
    n = len(doc_ids)
    ends = np.flatnonzero(np.append(doc_ids[1:] != doc_ids[:-1], np.ones(min(n, 1), np.bool_))) + 1
    run_end = np.repeat(ends, np.diff(ends, prepend=0))
    stream = Stream(indptr.astype(np.int64), features, run_end)
    nothing = np.zeros(len(features), np.int64)
    no_ids = np.zeros(n, np.uint32)
    text = Text(stream, no_ids, nothing, (d_sae, 1), choose_device(device))
    edges, _ = text.transitions(NO_LAGS)
    at = edges["source"].to_numpy().astype(np.int64), edges["target"].to_numpy().astype(np.int64)
    return sparse.csr_array((edges["n_pairs"].to_numpy(), at), shape=(d_sae, d_sae))


class Text:
    """A token stream on a device."""

    def __init__(
        self,
        stream: Stream,
        token_ids: NDArray[np.uint32],
        nats: NDArray[np.int64],
        sizes: tuple[int, int],
        device: torch.device,
    ) -> None:
        """Copy a stream to a device, and sort its firings by feature; arguments as of `pair_tables`."""
        self.d_sae, self.d_vocab = sizes

        def put(column: NDArray[Any]) -> Tensor:
            return torch.from_numpy(column.astype(np.int64)).to(device)

        starts = put(stream.indptr)
        self.rows = Rows(starts[:-1], starts.diff(), put(stream.features))
        self.token_ids = put(token_ids)
        place = torch.arange(len(token_ids), device=device)
        self.left = put(stream.run_end) - 1 - place  # tokens of the window that are still to come
        order = torch.argsort(self.rows.features, stable=True)
        at = torch.repeat_interleave(place, self.rows.sizes)
        self.firings = Firings(self.rows.features[order], at[order], put(nats)[order])

    def transitions(self, lags: tuple[int, int]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Count pairs on neighbouring tokens, and at the lags.

        Args:
            lags: least and greatest distance, in tokens, of the lagged pairs.

        Returns:
            The tables `transitions` (with n_tokens) and `edge_tokens` of `counting.count_block`.
        """
        found = [self._of_range(part, begin, end, lags) for part, begin, end in self._ranges()]
        edges, tokens = ([pair[k] for pair in found] for k in (0, 1))
        return pl.concat(edges, rechunk=False), pl.concat(tokens, rechunk=False)

    def coactivation(self) -> pl.DataFrame:
        """Count pairs of features on the same token, feature_a < feature_b."""
        found = []
        for part, begin, end in self._ranges(step=0):
            table = self._table(begin, end)
            for k, target in self._pairs(part, 0):
                source = part.sources[k]
                is_kept = source < target
                _count(table, ((source - begin) * self.d_sae + target)[is_kept])
            at = table.nonzero()[:, 0]
            found.append(self._frame(("feature_a", "feature_b"), at, begin, n_both=table[at]))
        return pl.concat(found, rechunk=False)

    def _ranges(self, step: int = 1) -> Iterator[tuple[Firings, int, int]]:
        """Cut the sources into ranges: their firings, the first one, one past the last."""
        has_pair = self.left >= step
        n_after = torch.where(has_pair, self.rows.sizes.roll(-step), 0)
        device = n_after.device
        n_pairs = torch.zeros(self.d_sae, dtype=torch.int64, device=device)
        n_pairs.index_add_(0, self.firings.sources, n_after[self.firings.places])
        before = np.concatenate([[0], n_pairs.cumsum(0).cpu().numpy()])
        edges = torch.arange(self.d_sae + 1, device=device)
        starts = torch.searchsorted(self.firings.sources, edges).tolist()
        begin = 0
        while begin < self.d_sae:
            end = int(np.searchsorted(before, before[begin] + PAIRS, side="right")) - 1
            end = min(max(end, begin + 1), begin + max(1, CELLS // self.d_sae), self.d_sae)
            part = slice(starts[begin], starts[end])
            yield Firings(*(column[part] for column in self.firings)), begin, end
            begin = end

    def _pairs(self, part: Firings, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pair firings with the features `step` tokens later: rows of `part`, and targets."""
        rows = torch.nonzero(self.left[part.places] >= step)[:, 0]
        later = part.places[rows] + step
        sizes = self.rows.sizes[later]
        ends = sizes.cumsum(0)
        done = n_done = 0
        while done < len(rows):
            stop = int(torch.searchsorted(ends, n_done + EXPANDED, right=True))
            stop = max(stop, done + 1)
            size, first = sizes[done:stop], self.rows.starts[later[done:stop]]
            ahead = first - (ends[done:stop] - size - n_done)
            k = torch.repeat_interleave(rows[done:stop], size)
            entries = torch.arange(len(k), device=k.device)
            yield k, self.rows.features[entries + torch.repeat_interleave(ahead, size)]
            done, n_done = stop, int(ends[stop - 1])

    def _of_range(
        self, part: Firings, begin: int, end: int, lags: tuple[int, int]
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        keys, sums = self._triples(part, begin)
        cells = keys // self.d_vocab
        near = torch.zeros((4, (end - begin) * self.d_sae), dtype=torch.int64, device=keys.device)
        for row, values in zip(near, (*sums, torch.ones_like(keys)), strict=True):
            row.index_add_(0, cells, values)
        lagged = self._table(begin, end)
        for lag in range(lags[0], lags[1] + 1):
            for k, target in self._pairs(part, lag):
                _count(lagged, (part.sources[k] - begin) * self.d_sae + target)
        at = ((near[0] > 0) | (lagged > 0)).nonzero()[:, 0]
        names = ("n_pairs", "n_promoted", "nats")
        columns = dict(zip(names, near[:3, at], strict=True))
        edges = self._frame(
            ("source", "target"), at, begin, **columns, n_lagged=lagged[at], n_tokens=near[3, at]
        )
        tokens = self._frame(
            ("source", "target"), cells, begin, n_pairs=sums[0], n_promoted=sums[1]
        )
        between = pl.Series("token_id", (keys % self.d_vocab).cpu().numpy().astype(np.uint32))
        return edges, tokens.insert_column(2, between)

    def _triples(self, part: Firings, begin: int) -> tuple[Tensor, Tensor]:
        """Give (source, target, token between) as sorted keys, each once, and (3, n) sums."""
        empty = part.places[:0]
        keys, sums = empty, empty.expand(3, 0)
        for k, target in self._pairs(part, 1):
            token = self.token_ids[part.places[k] + 1]
            new = ((part.sources[k] - begin) * self.d_sae + target) * self.d_vocab + token
            nats = part.nats[k]
            added = torch.stack((torch.ones_like(nats), (nats > 0).long(), nats))
            keys, inverse = torch.unique(torch.cat((keys, new)), return_inverse=True)
            total = added.new_zeros((3, len(keys)))
            sums = total.index_add_(1, inverse, torch.cat((sums, added), dim=1))
        return keys, sums

    def _table(self, begin: int, end: int) -> Tensor:
        n = (end - begin) * self.d_sae
        return torch.zeros(n, dtype=torch.int64, device=self.token_ids.device)

    def _frame(
        self, ids: tuple[str, str], cells: Tensor, begin: int, **sums: Tensor
    ) -> pl.DataFrame:
        """Give a table whose ids are the source and the target of each cell."""
        both = (cells // self.d_sae + begin, cells % self.d_sae)
        columns = {
            name: values.cpu().numpy().astype(np.uint32)
            for name, values in zip(ids, both, strict=True)
        }
        return pl.DataFrame(columns | {name: row.cpu().numpy() for name, row in sums.items()})


def _count(table: Tensor, keys: Tensor) -> None:
    table.index_add_(0, keys, torch.ones_like(keys))
