"""A rough product that says which features can fire: nothing is missed, whatever rounding does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import naive
import numpy as np
import pytest
import torch
from torch import Tensor

from sae_core import screen_loops, screening, sparsify
from sae_core.row_loops import NOT_A_NUMBER
from sae_core.sae import SaeConfig, SparseAutoencoder
from sae_core.sparsify import Encoder, sparse_acts

if TYPE_CHECKING:
    from sae_core.schema import SparseActs

SEEDS = range(4)
D_IN = 24


@pytest.fixture(autouse=True)
def _screen_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "LEAST_FEATURES", 1)
    monkeypatch.setattr(screening, "has_bfloat16_products", lambda: True)


def _weights(seed: int, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make 50 activations, some rows 0 or huge or tiny; an encoder with twin features; a bias."""
    torch.manual_seed(seed)
    x, W = torch.randn(50, D_IN), torch.randn(D_IN, d_sae)
    x[3], x[4], x[5], x[6] = 0, x[4] * 1e6, x[5] * 1e-6, -x[7]
    W[:, 1::5] = W[:, :1]
    W[:, 2] *= 100
    return x, W, torch.randn(d_sae) * 0.2


def _entries(rows: SparseActs, token: int) -> dict[int, float]:
    cut = slice(rows.indptr[token], rows.indptr[token + 1])
    return dict(zip(rows.indices[cut].tolist(), rows.values[cut].tolist(), strict=True))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("d_sae", "k"), [(7, 1), (40, 3), (150, 16), (150, 150), (300, None)])
def test_screened_rows_equal_their_plain_twin(seed: int, d_sae: int, k: int | None) -> None:
    x, W, bias = _weights(seed, d_sae)
    floor = torch.zeros(d_sae) if k else torch.rand(d_sae) * 8
    encoder = Encoder.of(W, bias, floor, k)
    assert encoder.screen is not None
    found = sparse_acts(x, encoder)
    exact = (x.double() @ W.double()).numpy()
    for token, row in enumerate(exact):
        values = _entries(found, token)
        size = 1e-5 * max(1.0, float(np.abs(row).max()))
        kept = naive.kept(row.tolist(), bias.tolist(), floor.tolist(), k or d_sae)
        least = min(value for _, value in kept) if len(kept) == k else None
        near = {j for j, value in enumerate(row + bias.numpy())
                if abs(value - (least if least is not None else floor[j].item())) <= size}  # fmt: skip
        assert set(values) ^ {j for j, _ in kept} <= near
        for j, value in values.items():
            assert value == pytest.approx(row[j] + bias[j].item(), abs=size)


@pytest.mark.parametrize("seed", SEEDS)
def test_features_that_rounding_cannot_tell_apart_are_told_apart(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.rand(30, D_IN) + 0.5
    steps = torch.randperm(200) * 1e-5  # bfloat16 has steps of 8e-3 at 1
    W = torch.full((D_IN, 200), 1.0) + steps
    assert W.bfloat16().float().unique().numel() < 5
    rows = sparse_acts(x, Encoder.of(W, torch.zeros(200), torch.zeros(200), 5))
    largest = set(steps.topk(5).indices.tolist())
    assert all(set(_entries(rows, token)) == largest for token in range(30))


def test_of_equal_features_the_lowest_are_kept() -> None:
    x, W = torch.ones(1, D_IN), torch.full((D_IN, 90), 0.3)
    rows = sparse_acts(x, Encoder.of(W, torch.zeros(90), torch.zeros(90), 4))
    assert rows.indices.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("k", [4, None])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_a_token_whose_values_are_no_numbers_is_marked(wrong: float, k: int | None) -> None:
    x, W, bias = _weights(0, 60)
    x[9, 3] = wrong
    W[3] = W[3].abs() + 50
    rows = sparse_acts(x, Encoder.of(W, bias, torch.zeros(60), k))
    assert np.isnan(rows.values[rows.indptr[9]])
    assert np.isnan(rows.values).sum() == 1


def test_loops_mark_what_is_no_number() -> None:
    x, W, bias = _weights(0, 60)
    x[9, 3] = float("nan")
    screen = screening.screen_of(W, bias)
    assert screen is not None
    rough = screening.multiply(x, screen, torch.empty(50, 60, dtype=torch.bfloat16))
    counts, ids = np.empty(50, np.int64), np.empty((50, 4), np.uint32)
    values = np.empty((50, 4), np.float32)
    given = rough, screen.W, screen.bias, screen.sizes
    n_computed = screen_loops.keep_largest_screened(*given, counts, ids, values)
    assert np.flatnonzero(counts == NOT_A_NUMBER).tolist() == [9]
    assert 4 * 48 <= n_computed < 49 * 60


@pytest.mark.parametrize("k", [4, None])
def test_where_too_much_must_be_computed_the_full_product_takes_over(
    k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, W, bias = _weights(1, 60)
    monkeypatch.setattr(sparsify, "SLAB_ROWS", 8)
    encoder = Encoder.of(W, bias, torch.zeros(60), k)
    screened = sparse_acts(x, encoder)
    monkeypatch.setattr(sparsify, "MOST_COMPUTED", 0)
    full = sparse_acts(x, encoder)
    assert np.array_equal(screened.indptr, full.indptr)
    assert np.array_equal(screened.indices, full.indices)
    rows = np.repeat(np.arange(len(x)), np.diff(full.indptr))
    size = x.norm(dim=1).numpy()[rows] * W.norm(dim=0).numpy()[full.indices]
    assert (np.abs(screened.values - full.values) <= 1e-6 * size).all()  # but for the sums' order


def test_few_features_and_plain_processors_take_the_full_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, W, bias = _weights(0, 60)
    monkeypatch.setattr(screening, "LEAST_FEATURES", 61)
    assert screening.screen_of(W, bias) is None
    monkeypatch.setattr(screening, "LEAST_FEATURES", 1)
    monkeypatch.setattr(screening, "has_bfloat16_products", lambda: False)
    assert screening.screen_of(W, bias) is None


def test_a_changed_weight_is_seen() -> None:
    sae = SparseAutoencoder(SaeConfig(D_IN, 60, "topk", 4))
    x, W, _ = _weights(0, 60)
    with torch.no_grad():
        sae.W_enc.copy_(W)
        before = sae.encode_sparse(x)
        assert np.array_equal(sae.encode_sparse(x).indices, before.indices)
        sae.W_enc.mul_(-1)
    after = sae.encode_sparse(x)
    assert not np.array_equal(after.values, before.values)
    dense = sae.encode(x).detach().numpy()
    assert np.array_equal(np.flatnonzero(dense[0]), after.indices[: after.indptr[1]])


@pytest.mark.parametrize("k", [3, 130, None])
def test_chunks_that_end_where_room_ends_change_nothing(
    k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    n = 2 * screen_loops.CHUNK + 5
    x, W, bias = torch.randn(n, D_IN), torch.randn(D_IN, 300), torch.randn(300)
    monkeypatch.setattr(sparsify, "MOST_COMPUTED", 300)
    found = sparse_acts(x, Encoder.of(W, bias, torch.zeros(300), k))
    assert k == 3 or len(found.indices) > n * screen_loops.ROOM  # a chunk does not fit
    monkeypatch.setattr(sparsify, "MOST_COMPUTED", 0)
    full = sparse_acts(x, Encoder.of(W, bias, torch.zeros(300), k))
    assert np.array_equal(found.indptr, full.indptr)
    assert (found.indices == full.indices).mean() > 0.9999
    np.testing.assert_allclose(found.values, full.values, rtol=1e-3, atol=1e-4)
