"""A loop whose feature is split, by text or by token, is found as one; what shares a topic is not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from circuits.edge_tables import build_edges
from circuits.shape import Text
from circuits.split_loops import _as_one, split_loops
from sae_core.schema import TokenTable
from sae_core.statistics import collect

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

N_DOCS, N_IN_DOC, N_WORDS, N_LOOP = 40, 400, 50, 12
N = N_DOCS * N_IN_DOC
MEMBER = 0.9  # nats that a loop's feature gives to a token of the loop; others get none


def text_of(fires: NDArray[np.bool_], inside: NDArray[np.bool_], tokens: NDArray[np.int64]) -> Text:
    """Make a text whose features promote the loop's tokens."""
    at = np.arange(N)
    rows, features = np.nonzero(fires)
    comes = np.append(inside[1:], False) & ~(at % N_IN_DOC == N_IN_DOC - 1)
    table = TokenTable(
        doc_ids=(at // N_IN_DOC).astype(np.uint32),
        window_ids=(at // N_IN_DOC).astype(np.uint32),
        pos=(at % N_IN_DOC).astype(np.uint32),
        token_ids=tokens.astype(np.uint32),
        byte_start=at,
        byte_end=at + 1,
        indptr=np.concatenate([[0], np.cumsum(fires.sum(1))]),
        features=features.astype(np.uint32),
        acts=np.ones(len(features), np.float32),
        promotions=np.where(comes[rows], MEMBER, 0).astype(np.float32),
    )
    return Text(table, np.ones(fires.shape[1]), [str(k) for k in range(N_WORDS)])


def bursts(rng: np.random.Generator) -> NDArray[np.bool_]:
    """(N,) inside the loop: runs of 20 tokens on average, a quarter of the text."""
    inside, state = np.zeros(N, dtype=bool), False
    for p, chance in enumerate(rng.random(N)):
        state = chance >= 1 / 20 if state else chance < 1 / 60
        inside[p] = state
    return inside


def edges_of(text: Text, d_sae: int) -> pl.DataFrame:
    words = pl.DataFrame(
        {
            "token_id": range(N_WORDS),
            "token_bytes": [b"x"] * N_WORDS,
            "token_str": text.token_strs,
        },
        schema_overrides={"token_id": pl.UInt32},
    )
    return build_edges(collect(text.tokens, d_sae, N_WORDS), words).edges


def by_text(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    return (np.arange(len(tokens)) // N_IN_DOC) % 2


def by_token(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    return tokens % 3


@pytest.mark.parametrize(("part_of", "n_parts"), [(by_text, 2), (by_token, 3)])
def test_a_split_loop_is_found_as_one(
    part_of: Callable[[NDArray[np.int64]], NDArray[np.int64]], n_parts: int
) -> None:
    rng = np.random.default_rng(0)
    inside = bursts(rng)
    tokens = np.where(inside, rng.integers(N_LOOP, size=N), rng.integers(N_LOOP, N_WORDS, size=N))
    parts = part_of(tokens)[:, None] == np.arange(n_parts)
    around = inside | np.roll(inside, 5)
    topic = (around & (rng.random(N) < 0.8))[:, None]
    text = text_of(np.hstack([inside[:, None] & parts, topic]), inside, tokens)
    found = split_loops(edges_of(text, n_parts + 1), text)
    assert [(one.kind, one.groups) for one in found] == [("loop", (tuple(range(n_parts)),))]


def test_what_is_promoted_where_no_token_follows_does_not_count() -> None:
    rng = np.random.default_rng(0)
    inside = bursts(rng) | (np.arange(N) == N - 1)
    tokens = np.where(inside, rng.integers(N_LOOP, size=N), rng.integers(N_LOOP, N_WORDS, size=N))
    text = text_of(inside[:, None] & (by_text(tokens)[:, None] == np.arange(2)), inside, tokens)
    edges = edges_of(text, 2)
    last = np.repeat(np.arange(N) % N_IN_DOC == N_IN_DOC - 1, np.diff(text.tokens.indptr))
    assert last[-1]  # of the whole text, too
    promotions = np.where(last, np.float32(MEMBER), text.tokens.promotions)
    odd = replace(text, tokens=text.tokens._replace(promotions=promotions))
    assert split_loops(edges, odd) == split_loops(edges, text) != []


def test_loops_of_other_tokens_stay_apart() -> None:
    rng = np.random.default_rng(1)
    inside = bursts(rng)
    doc = np.arange(N) // N_IN_DOC % 2
    own = rng.integers(N_LOOP // 2, size=N) + doc * (N_LOOP // 2)
    tokens = np.where(inside, own, rng.integers(N_LOOP, N_WORDS, size=N))
    fires = inside[:, None] & (doc[:, None] == np.arange(2))
    text = text_of(fires, inside, tokens)
    edges = edges_of(text, 2)
    assert len(edges) == 2  # each leads to itself
    assert split_loops(edges, text) == []


def test_without_edges_there_is_nothing_to_join() -> None:
    rng = np.random.default_rng(2)
    inside = bursts(rng)
    text = text_of(inside[:, None], inside, rng.integers(N_WORDS, size=N))
    assert split_loops(edges_of(text, 1).clear(), text) == []


def test_where_two_parts_fire_the_stronger_one_counts() -> None:
    table = TokenTable(
        doc_ids=np.zeros(3, np.uint32),
        window_ids=np.zeros(3, np.uint32),
        pos=np.arange(3, dtype=np.uint32),
        token_ids=np.zeros(3, np.uint32),
        byte_start=np.arange(3),
        byte_end=np.arange(3) + 1,
        indptr=np.array([0, 3, 4, 6]),
        features=np.array([1, 4, 6, 2, 4, 5], np.uint32),
        acts=np.array([1, 3, 2, 5, 1, 1.5], np.float32),
        promotions=np.array([0.1, 0.3, 0.2, 0.5, 0.4, 0.6], np.float32),
    )
    one = _as_one(table, [(4, 1), (2, 6)])
    assert one.indptr.tolist() == [0, 2, 3, 4]
    assert one.features.tolist() == [0, 1, 1, 0]
    assert one.acts.tolist() == [3, 2, 5, 1]
    assert one.promotions.tolist() == pytest.approx([0.3, 0.2, 0.5, 0.4])
