"""Plain Python twins of the compiled loops, and random token streams to run both on."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_core.schema import TokenTable

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIT = 2**20


def random_tokens(
    seed: int, *, n: int = 200, d_sae: int = 7, d_vocab: int = 5, n_docs: int = 4
) -> TokenTable:
    """Make a stream with documents and windows of uneven length, some of them one token long."""
    rng = np.random.default_rng(seed)
    doc_ids = np.sort(rng.integers(0, n_docs, n)).astype(np.uint32) * 3
    window_ids = np.cumsum(rng.random(n) < 0.06).astype(np.uint32)
    fires = rng.random((n, d_sae)) < rng.uniform(0, 0.5, d_sae)
    indptr = np.concatenate([[0], np.cumsum(fires.sum(1))])
    features = np.nonzero(fires)[1].astype(np.uint32)
    nnz = len(features)
    position = np.arange(n)
    return TokenTable(
        doc_ids,
        window_ids,
        position.astype(np.uint32),
        rng.integers(0, d_vocab, n).astype(np.uint32),
        position.astype(np.int64),
        position.astype(np.int64) + 1,
        indptr.astype(np.int64),
        features,
        rng.exponential(1, nnz).astype(np.float32) + np.float32(0.01),
        rng.normal(0, 0.3, nnz).astype(np.float32),
    )


def part(tokens: TokenTable, start: int, stop: int) -> TokenTable:
    """Give the rows start..stop of a stream as a stream."""
    first, last = tokens.indptr[start], tokens.indptr[stop]
    rows = [column[start:stop] for column in tokens[:6]]
    lists = [column[first:last] for column in tokens[7:]]
    return TokenTable(*rows, tokens.indptr[start : stop + 1] - first, *lists)


def cuts(tokens: TokenTable) -> list[int]:
    """List the rows at which a new document starts."""
    return [p for p in range(1, len(tokens.doc_ids)) if tokens.doc_ids[p] != tokens.doc_ids[p - 1]]


def active(tokens: TokenTable, p: int) -> dict[int, int]:
    """Give the features that fire on row p and where their entries are."""
    entries = range(int(tokens.indptr[p]), int(tokens.indptr[p + 1]))
    return {int(tokens.features[entry]): entry for entry in entries}


def joined(tokens: TokenTable, p: int, lag: int) -> bool:
    """Say whether p and p + lag are in one document and one window."""
    q = p + lag
    return (
        q < len(tokens.doc_ids)
        and tokens.doc_ids[p] == tokens.doc_ids[q]
        and tokens.window_ids[p] == tokens.window_ids[q]
    )


def pairs(tokens: TokenTable, lag: int) -> Iterator[tuple[int, int, int, int]]:
    """Give (p, i, j, entry of i at p) for each i at p and j at p + lag."""
    for p in range(len(tokens.doc_ids)):
        if joined(tokens, p, lag):
            for i, entry in active(tokens, p).items():
                for j in active(tokens, p + lag):
                    yield p, i, j, entry


def statistics(tokens: TokenTable, threshold: float) -> dict[str, Any]:
    """Count everything that `sae_core.statistics.collect` counts, as counters and numbers."""
    out: dict[str, Any] = {name: Counter() for name in _COUNTERS}
    n = len(tokens.doc_ids)
    out["n_tokens"] = n
    out["n_pairs"] = sum(joined(tokens, p, 1) for p in range(n))
    out["n_lag_pairs"] = sum(joined(tokens, p, lag) for p in range(n) for lag in range(5, 21))
    for p in range(n):
        _count_token(tokens, p, threshold, out)
    for p, i, j, entry in pairs(tokens, 1):
        promoted = tokens.promotions[entry] > threshold
        following = int(tokens.token_ids[p + 1])
        out["pairs"][i, j] += 1
        out["token_pairs"][i, j, following] += 1
        out["promoted"][i, j] += int(promoted)
        out["token_promoted"][i, j, following] += int(promoted)
        out["nats"][i, j] += fixed(tokens.promotions[entry]) if promoted else 0
    for lag in range(5, 21):
        for _, i, j, _ in pairs(tokens, lag):
            out["lagged"][i, j] += 1
    return out


def pair_counts(tokens: TokenTable, d_sae: int) -> np.ndarray:
    """Count at [i, j] the tokens with i on which are followed by one with j, windows aside."""
    whole = tokens._replace(window_ids=np.zeros_like(tokens.window_ids))
    out = np.zeros((d_sae, d_sae), np.int64)
    for _, i, j, _ in pairs(whole, 1):
        out[i, j] += 1
    return out


def fixed(value: float) -> int:
    """Round to whole units of 2^-20, half to even."""
    return round(float(value) * UNIT)


_COUNTERS = (
    "fires",
    "source",
    "target",
    "act_sum",
    "act_max",
    "promoted_source",
    "token",
    "token_features",
    "promoted_token",
    "promoted_token_nats",
    "both",
    "pairs",
    "promoted",
    "nats",
    "lagged",
    "token_pairs",
    "token_promoted",
)


def _count_token(tokens: TokenTable, p: int, threshold: float, out: dict[str, Any]) -> None:
    token = int(tokens.token_ids[p])
    out["token"][token] += 1
    for i, entry in active(tokens, p).items():
        out["fires"][i] += 1
        out["token_features"][i, token] += 1
        out["act_sum"][i] += fixed(tokens.acts[entry])
        out["act_max"][i] = max(out["act_max"][i], float(tokens.acts[entry]))
        out["target"][i] += int(p > 0 and joined(tokens, p - 1, 1))
        for j in active(tokens, p):
            out["both"][i, j] += int(i < j)
        if joined(tokens, p, 1):
            out["source"][i] += 1
            if tokens.promotions[entry] > threshold:
                following = int(tokens.token_ids[p + 1])
                out["promoted_source"][i] += 1
                out["promoted_token"][i, following] += 1
                out["promoted_token_nats"][i, following] += fixed(tokens.promotions[entry])


def states(
    tokens: TokenTable, state_of: list[int], inverse: list[float], threshold: float
) -> list[int]:
    """Give each token's state: the largest sum of act * inverse above the threshold."""
    found = []
    for p in range(len(tokens.doc_ids)):
        scores: dict[int, float] = {}
        for i, entry in active(tokens, p).items():
            if state_of[i] >= 0:
                before = scores.get(state_of[i], 0.0)
                scores[state_of[i]] = before + float(tokens.acts[entry]) * inverse[i]
        best = min(scores, key=lambda state: (-scores[state], state), default=-1)
        found.append(best if best >= 0 and scores[best] > threshold else -1)
    return found


def kept(
    dense: list[float], bias: list[float], floor: list[float], k: int
) -> list[tuple[int, Any]]:
    """Give (id, value) of the k largest of dense + bias above floor; of equal values the lowest ids."""
    values = [np.float32(a) + np.float32(b) for a, b in zip(dense, bias, strict=True)]
    above = [j for j, value in enumerate(values) if value > floor[j]]
    best = sorted(above, key=lambda j: (-values[j], j))[:k]
    return [(j, values[j]) for j in sorted(best)]


def permuted_within_documents(tokens: TokenTable, rng: np.random.Generator) -> TokenTable:
    """Shuffle which features fire on which token of a document; ids and windows stay."""
    rows = [
        rng.permutation(np.flatnonzero(tokens.doc_ids == doc)) for doc in np.unique(tokens.doc_ids)
    ]
    order = np.concatenate(rows)
    entries = np.concatenate([np.arange(tokens.indptr[p], tokens.indptr[p + 1]) for p in order])
    sizes = np.diff(tokens.indptr)[order]
    return tokens._replace(
        indptr=np.concatenate([[0], np.cumsum(sizes)]),
        features=tokens.features[entries],
        acts=tokens.acts[entries],
        promotions=tokens.promotions[entries],
    )


def merge_order(counts: np.ndarray) -> list[tuple[int, int, float]]:
    """Merge rows two at a time, each time the pair that loses least of I(row; column), in bits.

    Every loss is taken anew from the definition of mutual information over the rows that are left.
    """
    rows = {a: [float(n) for n in row] for a, row in enumerate(counts)}
    found = []
    while len(rows) > 1:
        before = _information(list(rows.values()))
        losses = {}
        for a, b in combinations(sorted(rows), 2):
            kept = [row for c, row in rows.items() if c not in (a, b)]
            both = [x + y for x, y in zip(rows[a], rows[b], strict=True)]
            losses[a, b] = before - _information([*kept, both])
        a, b = min(losses, key=lambda pair: (round(losses[pair], 9), pair))
        found.append((a, b, losses[a, b]))
        rows[a] = [x + y for x, y in zip(rows[a], rows.pop(b), strict=True)]
    return found


def _information(rows: list[list[float]]) -> float:
    total = sum(map(sum, rows))
    columns = [sum(row[k] for row in rows) for k in range(len(rows[0]))]
    return sum(
        n / total * math.log2(n * total / (sum(row) * columns[k]))
        for row in rows
        for k, n in enumerate(row)
        if n
    )


def given(tokens: TokenTable, norms: dict[tuple[int, int], float]) -> tuple[Counter, Counter]:
    """Sum e^-nats by (feature, token), and the shares 1 - e^-nats / norm by (feature, next token)."""
    left: Counter[tuple[int, int]] = Counter()
    shares: Counter[tuple[int, int]] = Counter()
    for p in range(len(tokens.doc_ids)):
        if joined(tokens, p, 1):
            for i, entry in active(tokens, p).items():
                on = i, int(tokens.token_ids[p])
                weight = float(np.exp(-np.clip(float(tokens.promotions[entry]), -10, 10)))
                left[on] += round(weight * 2**26)
                shares[i, int(tokens.token_ids[p + 1])] += fixed(1 - weight / norms[on])
    return left, shares
