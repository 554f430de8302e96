from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import tiny
import torch

from sae_core import logits
from sae_core.language_model import DirectPath, OneLayerModel
from sae_core.logits import LogitEffects
from sae_core.run_writer import vocabulary_frame
from sae_core.sae import SaeConfig, SparseAutoencoder

D_SAE = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OneLayerModel:
    return tiny.language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def sae() -> SparseAutoencoder:
    sae = SparseAutoencoder(SaeConfig(24, D_SAE, "topk", 5))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.normal_(generator=generator)
    return sae.requires_grad_(requires_grad=False)


def _ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(300, (3, 16), generator=torch.Generator().manual_seed(seed))


def test_effects_worked_out_by_hand() -> None:
    """Two neurons, d_model 2, three tokens; centred rows of W_out are (1, -1) and (-2, 2)."""
    path = DirectPath(
        W_out=torch.tensor([[3.0, 1.0], [0.0, 4.0]]),
        gain=torch.tensor([1.0, 10.0]),
        W_U=torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 0.0]]),
        is_centred=True,
    )
    model = SimpleNamespace(direct_path=lambda _at: path)
    effects = LogitEffects.of(model, SparseAutoencoder.neurons(2))
    assert effects.G.tolist() == [[1.0, -10.0], [-2.0, 20.0]]
    assert effects.median.tolist() == [1.0, -2.0]  # of (1, -10, 5) and (-2, 20, -10)
    assert effects.rows(np.array([0, 1])).tolist() == [[0.0, -11.0, 4.0], [0.0, 22.0, -8.0]]


def test_effects_equal_the_change_of_logits_when_a_feature_is_taken_out(
    model: OneLayerModel, sae: SparseAutoencoder
) -> None:
    effects = LogitEffects.of(model, sae)
    state = model.run_to_hook(_ids(), sae.hook_point)
    acts = sae.encode(state.acts)
    scale = model.final_scale(state)[..., None]
    clean = model.module.final_residual(state)
    before = _unembed_with_scale(model, clean, scale)
    for feature in (acts > 0).flatten(0, 1).sum(dim=0).topk(4).indices.tolist():
        lost = acts[..., feature, None] * sae.W_dec[feature]
        changed = model.module.final_residual(state._replace(acts=state.acts - lost))
        measured = before - _unembed_with_scale(model, changed, scale)  # (batch, pos, d_vocab)
        row = torch.from_numpy(effects.rows(np.array([feature])))[0]
        predicted = acts[..., feature, None] * row / scale
        shift = acts[..., feature, None] * float(effects.median[feature]) / scale
        assert float(measured.abs().max()) > 0.1
        torch.testing.assert_close(measured - shift, predicted, atol=1e-4, rtol=1e-4)


def _unembed_with_scale(
    model: OneLayerModel, resid: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    centred = resid - resid.mean(dim=-1, keepdim=True)
    return centred / scale * model.module.ln_final.w @ model.module.W_U


def test_with_its_own_scale_the_final_norm_gives_the_models_logits(model: OneLayerModel) -> None:
    state = model.run_to_hook(_ids(), "blocks.0.mlp.hook_post")
    resid = model.module.final_residual(state)
    by_hand = _unembed_with_scale(model, resid, model.final_scale(state)[..., None])
    torch.testing.assert_close(by_hand, model.logits(state))


@pytest.mark.parametrize("dense_features", [0, 2048])
def test_promotions_are_acts_times_effects_over_scale(
    model: OneLayerModel,
    sae: SparseAutoencoder,
    dense_features: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logits, "DENSE_FEATURES", dense_features)
    monkeypatch.setattr(logits, "GATHER_ENTRIES", 7)
    monkeypatch.setattr(logits, "CHUNK_ENTRIES", D_SAE * 5)
    effects = LogitEffects.of(model, sae)
    ids = _ids()
    state = model.run_to_hook(ids, sae.hook_point)
    rows = sae.encode_sparse(state.acts.flatten(0, 1))
    scale = model.final_scale(state).flatten().numpy()
    following = np.roll(ids.numpy().ravel(), -1)
    found = effects.promotions(rows, following, scale)
    assert found.dtype == np.float32
    assert np.abs(found).max() > 0.1
    entry = 0
    for token in range(len(following)):
        for at in range(rows.indptr[token], rows.indptr[token + 1]):
            row = effects.rows(rows.indices[at : at + 1])[0]
            wanted = rows.values[at] * row[following[token]] / scale[token]
            assert found[at] == pytest.approx(float(wanted), rel=1e-4, abs=1e-5)
            entry += 1
    assert entry == len(found) > 100


def test_no_tokens_have_no_promotions(model: OneLayerModel, sae: SparseAutoencoder) -> None:
    rows = sae.encode_sparse(torch.zeros(0, 24))
    none = np.empty(0, np.int64)
    assert len(LogitEffects.of(model, sae).promotions(rows, none, none.astype(np.float32))) == 0


def test_each_row_has_median_zero(model: OneLayerModel, sae: SparseAutoencoder) -> None:
    rows = LogitEffects.of(model, sae).rows(np.arange(D_SAE))
    np.testing.assert_allclose(np.median(rows, axis=1), 0, atol=1e-5)
    assert np.abs(rows).max() > 1


def test_a_raw_neuron_is_a_row_of_w_out(model: OneLayerModel) -> None:
    effects = LogitEffects.of(model, SparseAutoencoder.neurons(24))
    W_out = model.module.blocks[0].mlp.W_out.numpy()
    centred = W_out - W_out.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(effects.G, centred * model.module.ln_final.w.numpy(), rtol=1e-5)


def test_the_table_holds_both_ends_of_each_row_in_order(
    model: OneLayerModel, sae: SparseAutoencoder
) -> None:
    effects = LogitEffects.of(model, sae)
    table = effects.top_tokens(vocabulary_frame(model.vocabulary))
    assert table.columns == ["feature_idx", "token_id", "token_str", "nats_per_unit"]
    assert table.dtypes == [pl.UInt32, pl.UInt32, pl.String, pl.Float32]
    assert table.height == D_SAE * 200
    one = table.filter(pl.col("feature_idx") == 7)
    row = effects.rows(np.array([7]))[0]
    order = np.argsort(-row, kind="stable")
    assert one["token_id"].to_list() == [*order[:100], *order[-100:]]
    np.testing.assert_allclose(one["nats_per_unit"].to_numpy(), row[one["token_id"]], rtol=1e-5)


def test_a_small_vocabulary_is_listed_once() -> None:
    effects = LogitEffects(
        np.eye(2, dtype=np.float32),
        np.array([[3, 1, 3], [0, 0, 0]], np.float32),
        np.array([3, 0], np.float32),
    )
    table = effects.top_tokens(vocabulary_frame([b"a", b"b", b"\xff"]))
    assert table.rows() == [
        (0, 0, "a", 0.0),
        (0, 2, "\\xff", 0.0),
        (0, 1, "b", -2.0),
        (1, 0, "a", 0.0),
        (1, 1, "b", 0.0),
        (1, 2, "\\xff", 0.0),
    ]


def test_ends_equal_those_of_a_whole_stable_sort_with_ties() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 300)).astype(np.float32)
    rows[5:10] = rng.integers(0, 3, (5, 300))  # most values are tied
    rows[12] = 0
    order = np.argsort(-rows, axis=1, kind="stable")
    wanted = np.concatenate([order[:, :100], order[:, -100:]], axis=1)
    assert np.array_equal(logits._ends(rows), wanted)
    features, tokens = logits._ends_of_all(rows)
    assert np.array_equal(tokens, wanted.ravel())
    assert np.array_equal(features, np.repeat(np.arange(20), 200))
