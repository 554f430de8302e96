"""Logit effects: what one unit of a feature adds to the logit of each token, on the direct path.

    L[i, v] = G[i] @ W_U[:, v] - m[i]        G = centre(W_dec @ W_out) * gain        m[i] = median
    over v

`centre` removes the mean over d_model, as LayerNorm does; `gain` is the final norm's weight. The
norm's scale is left out: it is applied a position at a time, so that `promotions` are nats. L
itself is never held whole: with 131,072 features and 50,000 tokens it would take 26 GB.

Source: Bricken et al. 2023, "Logit weights"; DESIGN's a_i(p) = f_i(p) * L[i, x_{p+1}] / scale(p).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import polars as pl
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from sae_core.language_model import LanguageModel
    from sae_core.sae import SparseAutoencoder
    from sae_core.schema import HookPoint, SparseActs

N_TOP = 100  # tokens kept at each end of a feature's row
CHUNK_ENTRIES = 1 << 24  # of L held at once: 64 MB of float32
DENSE_FEATURES = (
    2048  # up to here one matrix product a token is faster than gathering the firing rows
)
ROW_BLOCKS = 16  # parts of a chunk that cores take in turn
GATHER_ENTRIES = 1 << 10  # firing rows gathered at once: 1 MB, which stays in the cache

_T = TypeVar("_T", np.float32, np.int64)


@dataclass(frozen=True)
class LogitEffects:
    """The factors of L."""

    G: NDArray[np.float32]
    """(d_sae, d_model) what a unit adds to the final stream, centred, times the norm's gain."""

    W_U: NDArray[np.float32]
    """(d_model, d_vocab) unembedding."""

    median: NDArray[np.float32]
    """(d_sae,) median over the vocabulary of each row of G @ W_U."""

    @staticmethod
    def of(
        model: LanguageModel, sae: SparseAutoencoder, hook_point: str | HookPoint | None = None
    ) -> LogitEffects:
        """Compute the factors from the weights.

        Args:
            model: gives W_out, the final norm's gain and W_U.
            sae: gives W_dec.
            hook_point: where the dictionary reads; None takes the place it was trained for.

        Returns:
            The factors, on the CPU.
        """
        path = model.direct_path(hook_point or sae.hook_point)
        with torch.no_grad():
            written = sae.W_dec.to(path.W_out.device) @ path.W_out  # (d_sae, d_model)
            if path.is_centred:
                written = written - written.mean(dim=1, keepdim=True)
            G = (written * path.gain).cpu().numpy()
        W_U = path.W_U.detach().cpu().numpy()
        medians = [_by_rows(_medians, rows) for _, rows in _row_chunks(G, W_U)]
        return LogitEffects(G, W_U, np.concatenate(medians).astype(np.float32))

    def rows(self, features: NDArray[np.integer]) -> NDArray[np.float32]:
        """Give rows of L: (n, d_vocab) nats for one unit at scale 1, median 0."""
        rows: NDArray[np.float32] = self.G[features] @ self.W_U - self.median[features, None]
        return rows

    def promotions(
        self, acts: SparseActs, next_token_ids: NDArray[np.integer], scale: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Give the nats that each firing feature adds to the token that really comes next.

        Args:
            acts: the features that fire on n tokens.
            next_token_ids: (n,) the token after each.
            scale: (n,) the final norm's divisor at each.

        Returns:
            (nnz,) act * L[feature, next token] / scale, in the order of `acts`.
        """
        if len(self.G) <= DENSE_FEATURES:
            effects = self._dense_effects(acts, next_token_ids)
        else:
            effects = self._gathered_effects(acts, next_token_ids)
        counts = np.diff(acts.indptr)
        effects -= self.median[acts.indices]
        effects *= acts.values / np.repeat(scale, counts)
        return effects

    def top_tokens(self, vocabulary: pl.DataFrame) -> pl.DataFrame:
        """Give each feature's most promoted and most suppressed tokens.

        Args:
            vocabulary: token_id and token_str, as in vocabulary.parquet.

        Returns:
            feature_idx, token_id, token_str, nats_per_unit: 100 of each end (all, when the
                vocabulary is smaller
            than both), by feature, strongest promotion first; equal values by token id.
        """
        parts = []
        for first, raw in _row_chunks(self.G, self.W_U):
            rows = raw - self.median[first : first + len(raw), None]
            features, tokens = _ends_of_all(rows)
            parts.append((features + first, tokens, rows[features, tokens]))
        features, tokens, nats = (np.concatenate(column) for column in zip(*parts, strict=True))
        frame = pl.DataFrame(
            {
                "feature_idx": features.astype(np.uint32),
                "token_id": tokens.astype(np.uint32),
                "nats_per_unit": nats.astype(np.float32),
            }
        )
        names = vocabulary.select(pl.col("token_id").cast(pl.UInt32), "token_str")
        joined = frame.join(names, on="token_id", how="left", maintain_order="left")
        return joined.select("feature_idx", "token_id", "token_str", "nats_per_unit")

    def _dense_effects(
        self, acts: SparseActs, next_token_ids: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        out = np.empty(len(acts.indices), np.float32)
        n_rows = max(1, CHUNK_ENTRIES // len(self.G))
        for first in range(0, len(next_token_ids), n_rows):
            directions = self.W_U.T[next_token_ids[first : first + n_rows]]  # (rows, d_model)
            table = directions @ self.G.T  # (rows, d_sae)
            bounds = acts.indptr[first : first + len(directions) + 1]
            entries = slice(bounds[0], bounds[-1])
            token = np.repeat(np.arange(len(directions)), np.diff(bounds))
            out[entries] = table[token, acts.indices[entries]]
        return out

    def _gathered_effects(
        self, acts: SparseActs, next_token_ids: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        out = np.empty(len(acts.indices), np.float32)
        following = np.repeat(next_token_ids, np.diff(acts.indptr))  # (nnz,)
        directions = np.ascontiguousarray(self.W_U.T)
        for first in range(0, len(out), GATHER_ENTRIES):
            entries = slice(first, first + GATHER_ENTRIES)
            np.einsum(
                "ed,ed->e",
                self.G[acts.indices[entries]],
                directions[following[entries]],
                out=out[entries],
            )
        return out


def _row_chunks(
    G: NDArray[np.float32], W_U: NDArray[np.float32]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    n_rows = max(1, CHUNK_ENTRIES // W_U.shape[1])
    for first in range(0, len(G), n_rows):
        yield first, G[first : first + n_rows] @ W_U


def _by_rows(
    function: Callable[[NDArray[np.float32]], NDArray[_T]], rows: NDArray[np.float32]
) -> NDArray[_T]:
    """Apply a function of each row to all rows, on several cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(function, np.array_split(rows, ROW_BLOCKS))))


def _medians(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.median(rows, axis=1) if len(rows) else np.empty(0, np.float32)


def _ends_of_all(rows: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give (feature, token) of the N_TOP largest and smallest values of each row, largest first."""
    tokens = _by_rows(_ends, rows)
    return np.repeat(np.arange(len(rows)), tokens.shape[1]), tokens.ravel()


def _ends(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """Give the tokens of both ends of each row; of equal values the lower token comes first."""
    d_vocab = rows.shape[1]
    if d_vocab <= 2 * N_TOP or not len(rows):
        return _sorted_ends(rows)
    parts = np.partition(rows, (N_TOP - 1, d_vocab - N_TOP), axis=1)
    low, high = parts[:, N_TOP - 1, None], parts[:, d_vocab - N_TOP, None]
    is_end = (rows >= high) | (rows <= low)
    tied = is_end.sum(axis=1) != 2 * N_TOP  # equal values at the border: sort the whole row
    is_end[tied] = np.arange(d_vocab) < 2 * N_TOP
    tokens = np.nonzero(is_end)[1].reshape(len(rows), 2 * N_TOP)
    order = np.argsort(-np.take_along_axis(rows, tokens, axis=1), axis=1, kind="stable")
    tokens = np.take_along_axis(tokens, order, axis=1)
    tokens[tied] = _sorted_ends(rows[tied])
    return tokens


def _sorted_ends(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    order = np.argsort(-rows, axis=1, kind="stable")
    if rows.shape[1] <= 2 * N_TOP:
        return order
    return np.concatenate([order[:, :N_TOP], order[:, -N_TOP:]], axis=1)
