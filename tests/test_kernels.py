"""Each compiled loop gives what its plain twin gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import naive
import numpy as np
import polars as pl
import pytest

from circuits.given import indexed
from circuits.kernels import Index, add_left, add_shares, current_states, merge_costs
from circuits.states import information_bits
from sae_core import counting, kernels, pair_counts, pair_loops, row_loops

if TYPE_CHECKING:
    from sae_core.schema import TokenTable

SEEDS = (0, 1, 2, 3)
REPO = Path(__file__).parents[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_transition_counts_equal_their_plain_twin(seed: int) -> None:
    tokens = naive.random_tokens(seed)
    expected = naive.pair_counts(tokens, 7)
    assert expected.any()
    found = counting.transition_counts(tokens.indptr, tokens.features, tokens.doc_ids, 7)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found.toarray(), expected)


@pytest.mark.parametrize("row_pairs", [1, 1000])
@pytest.mark.parametrize("fires_a_token", [0, 9, 1000])
def test_pairs_of_frequent_and_of_rare_features_equal_their_plain_twin(
    fires_a_token: int, row_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_counts, "FIRES_A_TOKEN", fires_a_token)
    monkeypatch.setattr(pair_counts, "ROW_PAIRS", row_pairs)
    tokens = naive.random_tokens(5, n=120, d_sae=150)
    expected = naive.pair_counts(tokens, 150)
    found = counting.transition_counts(tokens.indptr, tokens.features, tokens.doc_ids, 150)
    assert found.has_sorted_indices
    assert found.data.min() > 0
    np.testing.assert_array_equal(found.toarray(), expected)


def test_counts_above_a_byte_are_exact() -> None:
    found = counting.transition_counts(
        np.arange(0, 1402, 2), np.tile([0, 1], 700), np.zeros(700, np.uint32), 2
    )
    assert found.toarray().tolist() == [[699, 699], [699, 699]]


def test_a_document_that_comes_back_is_not_joined_to_itself() -> None:
    found = counting.transition_counts(np.arange(4), np.array([0, 1, 0]), np.array([5, 6, 5]), 2)
    assert found.nnz == 0


def test_no_tokens_and_no_features_give_no_pairs() -> None:
    empty = np.empty(0, np.int64)
    assert counting.transition_counts(np.array([0]), empty, empty, 3).shape == (3, 3)
    assert counting.transition_counts(np.zeros(4, np.int64), empty, np.zeros(3), 3).nnz == 0


def text_of(tokens: TokenTable, rank: list[int]) -> pair_loops.Text:
    """Give a stream as the loops of pairs take it."""
    joined = np.array([naive.joined(tokens, p, 1) for p in range(len(tokens.doc_ids))])
    return pair_loops.Text(tokens.indptr, tokens.features, joined, np.array(rank, np.uint32))


def counters(d_sae: int) -> pair_loops.Counters:
    shape = (d_sae, pair_loops.GROUP)
    return pair_loops.Counters(
        np.zeros((pair_loops.GROUP, pair_loops.GROUP + 1), np.uint8),
        np.zeros(shape, np.uint8),
        np.zeros(d_sae, np.uint8),
        np.zeros(shape, np.uint32),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_packed_rare_features_equal_their_plain_twin(seed: int) -> None:
    tokens = naive.random_tokens(seed)
    rank = [3, 0, 2, 6, 1, 4, 5]
    rows, starts, places = [0], [0], []
    at = {}
    for p in range(200):
        at[p] = len(rows)
        found = [i for i in naive.active(tokens, p) if rank[i] >= 2]
        rows += [len(found), *found]
    for i in range(7):
        here = [p for p in range(200) if rank[i] >= 2 and i in naive.active(tokens, p)]
        places += [at[p + 1] if naive.joined(tokens, p, 1) else 0 for p in here]
        starts.append(len(places))
    packed = pair_loops.Rare(
        np.zeros(len(rows), np.uint16), np.array(starts), np.empty(len(places), np.uint32)
    )
    pair_loops.pack_rare(text_of(tokens, rank), 0, 200, 2, 1, np.array(starts[:-1]), packed)
    assert packed.rows.tolist() == rows
    assert packed.following.tolist() == places
    assert max(places) > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_pairs_with_a_group_equal_their_plain_twin(seed: int) -> None:
    tokens = naive.random_tokens(seed, n=400)
    text = text_of(tokens, list(range(64, 71)))
    packed = pair_loops.Rare(
        np.zeros(401 + len(tokens.features), np.uint16),
        np.concatenate([[0], np.cumsum(np.bincount(tokens.features, minlength=7))]),
        np.empty(len(tokens.features), np.uint32),
    )
    pair_loops.pack_rare(text, 0, 400, 0, 1, packed.starts[:-1].copy(), packed)
    expected = np.zeros((7, 7), np.int64)
    for _, i, j, _ in naive.pairs(tokens, 1):
        expected[i, j] += 1
    following, before = counters(7), counters(7)
    pair_loops.count_from_group(text, 1, following)
    pair_loops.count_to_group(text, 1, packed, before)
    np.testing.assert_array_equal(following.counts[:, :7].T, expected)
    np.testing.assert_array_equal(before.counts[:, :7], expected)
    assert not following.counts[:, 7:].any()


def test_firings_are_counted_and_groups_are_placed() -> None:
    n_fires = np.zeros(3, np.int64)
    pair_loops.count_firings(np.array([2, 0, 2], np.uint32), n_fires)
    assert n_fires.tolist() == [1, 0, 2]
    counts = np.zeros((3, pair_loops.GROUP), np.uint32)
    counts[:, :2] = [[5, 0], [0, 6], [7, 8]]
    indices, data = np.zeros(5, np.int32), np.zeros(5, np.int64)
    pair_loops.place_group(counts, np.array([3, 1]), indices, data)
    assert indices.tolist() == [0, 1, 2, 0, 2]
    assert data.tolist() == [0, 6, 8, 5, 7]


def test_no_pair_crosses_a_document() -> None:
    found = counting.transition_counts(
        np.arange(5), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), 2
    )
    assert found.toarray().tolist() == [[0, 2], [0, 0]]


def test_documents_may_have_any_ids() -> None:
    found = counting.transition_counts(
        np.arange(4), np.array([0, 0, 0]), np.array([-7, 2**40, 2**40]), 1
    )
    assert found.toarray().tolist() == [[1]]


@pytest.mark.parametrize(
    ("indptr", "indices", "sentence"),
    [
        ([0, 1, 2], [0, 2], r"indices must be in 0\.\.1, got 0\.\.2"),
        ([0, 1, 2], [0, -1], r"indices must be in 0\.\.1, got -1\.\.0"),
        ([0, 2], [0, 1], "one entry more than the 2 doc_ids"),
        ([0, 3, 2], [0, 1], "must not decrease"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    indptr: list[int], indices: list[int], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        counting.transition_counts(np.array(indptr), np.array(indices), np.array([0, 0]), 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_run_ends_equal_their_plain_twin(seed: int) -> None:
    tokens = naive.random_tokens(seed)
    out = np.empty(200, np.int64)
    kernels.find_run_ends(tokens.doc_ids, tokens.window_ids, out)
    expected = []
    for p in range(200):
        q = p
        while naive.joined(tokens, q, 1):
            q += 1
        expected.append(q + 1)
    assert out.tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_sums_and_maxima_by_key_equal_their_plain_twins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 5, 50).astype(np.uint32)
    values = rng.integers(-(2**60), 2**60, 50) // 50
    sums, maxima = np.zeros(5, np.int64), np.zeros(5, np.float32)
    weights = rng.random(50).astype(np.float32)
    kernels.add_by_key(keys, values, sums)
    kernels.max_by_key(keys, weights, maxima)
    for key in range(5):
        assert sums[key] == sum(int(v) for v in values[keys == key])
        assert maxima[key] == max(weights[keys == key])


@pytest.mark.parametrize("seed", SEEDS)
def test_current_states_equal_their_plain_twin(seed: int) -> None:
    tokens = naive.random_tokens(seed)
    state_of = np.array([1, 0, -1, 1, 2, -1, 0], np.int32)
    inverse = np.linspace(0.5, 2, 7)
    out = np.empty(200, np.int32)
    current_states(
        tokens.indptr, tokens.features, tokens.acts, state_of, inverse, 0.7, np.zeros(3), out
    )
    expected = naive.states(tokens, state_of.tolist(), inverse.tolist(), 0.7)
    assert len(set(expected)) > 2
    assert out.tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_costs_of_merging_rows_are_the_information_they_lose(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 30, (5, 9)) * (rng.random((5, 9)) < 0.6)
    n = np.arange(int(counts.sum()) + 1)
    n_log_n = n * np.log2(np.maximum(n, 1))
    row, others = 2, np.array([0, 1, 3, 4])
    out = np.empty(4)
    merge_costs(counts, counts.sum(axis=1), n_log_n, row, others, np.flatnonzero(counts[row]), out)
    for other, cost in zip(others, out, strict=True):
        pair = counts[[row, other]]
        assert cost == pytest.approx(information_bits(pair) * pair.sum(), abs=1e-9)


def test_the_lower_state_wins_a_tie() -> None:
    out = np.empty(1, np.int32)
    current_states(
        np.array([0, 2]),
        np.array([0, 1], np.uint32),
        np.ones(2, np.float32),
        np.array([1, 0], np.int32),
        np.ones(2),
        0.5,
        np.zeros(2),
        out,
    )
    assert out.tolist() == [0]


def hidden_layer(seed: int, *, d_sae: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make (40, d_sae) values with many ties, a bias and floors."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(-6, 7, (40, d_sae)).astype(np.float32) / 4
    dense[::2] = rng.standard_normal((20, d_sae))
    dense[5], dense[6] = -9, 9
    bias = rng.integers(-2, 3, d_sae).astype(np.float32) / 4
    return dense, bias, rng.integers(0, 4, d_sae).astype(np.float32) / 4


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("d_sae", "k"), [(7, 1), (7, 6), (64, 3), (150, 16)])
def test_the_largest_of_a_row_equal_their_plain_twin(seed: int, d_sae: int, k: int) -> None:
    dense, bias, _ = hidden_layer(seed, d_sae=d_sae)
    counts = np.empty(40, np.int64)
    ids, values = np.empty((40, k), np.uint32), np.empty((40, k), np.float32)
    row_loops.keep_largest(dense, bias, counts, ids, values)
    for row, n in enumerate(counts.tolist()):
        expected = naive.kept(dense[row].tolist(), bias.tolist(), [0.0] * d_sae, k)
        assert list(zip(ids[row, :n].tolist(), values[row, :n], strict=True)) == expected
    assert counts.min() == 0
    assert counts.max() == k


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("d_sae", [7, 64, 150])
def test_all_of_a_row_above_its_floors_equal_their_plain_twin(seed: int, d_sae: int) -> None:
    dense, bias, floor = hidden_layer(seed, d_sae=d_sae)
    counts = np.empty(40, np.int64)
    ids, values = np.empty((40, d_sae), np.uint32), np.empty((40, d_sae), np.float32)
    row_loops.keep_above(dense, bias, floor, counts, ids, values)
    for row, n in enumerate(counts.tolist()):
        expected = naive.kept(dense[row].tolist(), bias.tolist(), floor.tolist(), d_sae)
        assert list(zip(ids[row, :n].tolist(), values[row, :n], strict=True)) == expected
    assert counts.max() > 2


@pytest.mark.parametrize("at", [0, 63, 70, 149])
def test_a_row_with_a_value_that_is_no_number_is_marked(at: int) -> None:
    dense, bias, floor = hidden_layer(0, d_sae=150)
    dense[7, at] = np.nan
    counts = np.empty(40, np.int64)
    ids, values = np.empty((40, 150), np.uint32), np.empty((40, 150), np.float32)
    row_loops.keep_above(dense, bias, floor, counts, ids, values)
    assert np.flatnonzero(counts == row_loops.NOT_A_NUMBER).tolist() == [7]
    row_loops.keep_largest(dense, bias, counts, ids[:, :4].copy(), values[:, :4].copy())
    assert np.flatnonzero(counts == row_loops.NOT_A_NUMBER).tolist() == [7]


def columns_of(tokens: TokenTable) -> tuple[kernels.Stream, np.ndarray, np.ndarray]:
    stream = counting.stream_of(tokens.indptr, tokens.features, tokens.doc_ids, tokens.window_ids)
    return stream, tokens.promotions, tokens.token_ids


def followed(tokens: TokenTable) -> np.ndarray:
    return np.array([naive.joined(tokens, p, 1) for p in range(len(tokens.doc_ids))])


@pytest.mark.parametrize("seed", SEEDS)
def test_what_firings_give_equals_its_plain_twin(seed: int) -> None:
    tokens = naive.random_tokens(seed)
    tokens.promotions[::9] = -20.0
    columns = columns_of(tokens)
    every = pl.DataFrame([(i, v) for i in range(7) for v in range(5)], orient="row")
    index = indexed(every, 7)
    norms = np.random.default_rng(seed).uniform(0.5, 2, 35)
    left, shares = np.zeros((2, 35), np.int64), np.zeros((2, 35), np.int64)
    add_left(*columns, index, left)
    add_shares(*columns, index, norms, index, shares)
    expected = naive.given(tokens, dict(zip(every.rows(), norms.tolist(), strict=True)))
    for found, sums in zip((left, shares), expected, strict=True):
        assert found[1].tolist() == [sums[row] for row in every.rows()]
        assert found[0].sum() == np.diff(tokens.indptr)[followed(tokens)].sum()


def test_firings_on_pairs_without_a_row_are_left_out() -> None:
    tokens = naive.random_tokens(0)
    left = np.zeros((2, 1), np.int64)
    index = Index(np.array([0, 0, 1, 1, 1, 1, 1, 1]), np.array([3], np.uint32))
    add_left(*columns_of(tokens), index, left)
    rows = np.flatnonzero(followed(tokens) & (tokens.token_ids == 3))
    assert left[0, 0] == sum(1 in naive.active(tokens, p) for p in rows) > 0


def test_loops_compile_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, bool]] = []

    def njit(**options: bool) -> object:
        calls.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(kernels.numba, "njit", njit)
    assert kernels.compiled(naive.fixed) is naive.fixed
    assert [call.get("cache") for call in calls] == [True, None]


@pytest.mark.long
def test_loops_give_the_same_without_compilation() -> None:
    wanted = "test_kernels.py", "test_statistics.py"
    command = [
        sys.executable,
        "-m",
        "pytest",
        *(f"tests/{name}" for name in wanted),
        "-m",
        "not long",
    ]
    done = subprocess.run(
        command,
        cwd=REPO,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
