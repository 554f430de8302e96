from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny
import torch

from sae_core.activations import ArraySource, ModelSource, geometric_median, unit_scale
from sae_core.errors import SaeError
from sae_core.language_model import OneLayerModel
from sae_core.sae import load_sae
from sae_core.token_file import read_token_ids
from sae_core.train_sae import train_sae, train_sae_on_model
from sae_core.train_settings import TrainSaeConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

N_FEATURES = 12


def _planted(n: int, d_in: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sparse sums of 12 unit directions around an offset, and the directions."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(N_FEATURES, d_in))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    coefficients = (rng.random((n, N_FEATURES)) < 0.12) * rng.uniform(2, 6, (n, N_FEATURES))
    x = 1.5 + coefficients @ directions
    return x.astype(np.float32), directions


def _config(**changes: object) -> TrainSaeConfig:
    settings: dict[str, object] = {
        "d_in": 16,
        "d_sae": N_FEATURES,
        "k": 3,
        "n_activations": 100_000,
        "batch_size": 256,
        "lr": 5e-3,
        "warm_up_steps": 10,
        "dead_after": 5_000,
        "k_aux": 8,
        "record_every": 20,
        "checkpoint_every": 20,
    }
    return TrainSaeConfig(**settings | changes)  # type: ignore[arg-type]


def test_planted_directions_are_found() -> None:
    x, directions = _planted(20_000)
    result = train_sae(x, _config(d_sae=2 * N_FEATURES, n_activations=200_000))
    best = (directions @ result.sae.W_dec.detach().numpy().T).max(axis=1)
    assert (best > 0.95).sum() >= 10
    assert best.min() > 0.8
    assert result.metrics[-1]["fvu"] < 0.15
    assert result.metrics[-1]["l0"] <= 3


def test_the_result_reconstructs_in_the_units_of_its_input() -> None:
    x, _ = _planted(5_000)
    result = train_sae(100 * x, _config())
    x_hat = result.sae(torch.from_numpy(100 * x)).detach().numpy()
    error = np.square(x_hat - 100 * x).sum()
    assert error / np.square(100 * (x - x.mean(axis=0))).sum() < 0.3


def test_decoder_rows_have_unit_norm() -> None:
    x, _ = _planted(2_000)
    norms = train_sae(x, _config(n_activations=5_000)).sae.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(N_FEATURES))


def test_equal_seeds_give_equal_weights() -> None:
    x, _ = _planted(2_000)
    first, again, other = (
        train_sae(x, _config(n_activations=5_000, seed=seed)).sae.weights_hash for seed in (1, 1, 2)
    )
    assert first == again != other


def test_an_iterator_gives_one_batch_a_step() -> None:
    x, _ = _planted(4_096)
    drawn = []

    def batches() -> Iterator[np.ndarray]:
        for at in range(0, len(x), 256):
            drawn.append(at)
            yield x[at : at + 256]

    result = train_sae(batches(), _config(n_activations=2_560))
    assert len(drawn) == 10
    assert result.metrics[-1]["step"] == 10


def test_activations_that_end_too_early_are_said() -> None:
    x, _ = _planted(512)
    batches = iter([x[:256], x[256:]])
    with pytest.raises(SaeError, match="ended after 2 batches, before step 2"):
        train_sae(batches, _config(n_activations=2_560))


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.ones((300, 5), np.float32), r"shape \(256, 5\); \(n, 16\) was expected"),
        (np.full((300, 16), np.nan, np.float32), "step 0 hold NaN or infinity"),
        (np.ones((0, 16), np.float32), "no activations to train on"),
    ],
)
def test_unusable_activations_are_named(x: np.ndarray, match: str) -> None:
    with pytest.raises(SaeError, match=match):
        train_sae(x, _config())


def test_equal_activations_divide_by_nothing() -> None:
    x = np.full((600, 16), 2.0, np.float32)
    result = train_sae(x, _config(n_activations=2_000))
    assert np.isfinite(result.metrics[-1]["fvu"])
    np.testing.assert_allclose(result.sae(torch.from_numpy(x)).detach().numpy(), x, atol=0.1)


def test_silent_features_come_back_to_life() -> None:
    x, _ = _planted(20_000)
    aided, alone = (
        train_sae(x, _config(d_sae=64, n_activations=400_000, decay_share=0.0, **setting))
        for setting in ({}, {"aux_coefficient": 0})
    )
    assert aided.metrics[-1]["n_dead"] < 0.5 * alone.metrics[-1]["n_dead"]


def test_divergence_names_step_and_settings() -> None:
    x, _ = _planted(2_000)
    with pytest.raises(SaeError, match=r"diverged at step \d+: loss .*lr 1e\+30, topk, seed 0"):
        train_sae(x, _config(lr=1e30, warm_up_steps=0))


@pytest.mark.parametrize(
    "changes",
    [
        {"k": 13},
        {"k": None},
        {"lr": -1.0},
        {"batch_size": 0},
        {"n_activations": 7},
        {"beta1": 1.0},
        {"aux_coefficient": -1},
        {"variant": "gated"},
        {"variant": "l1"},  # has k, and no coefficient
        {"variant": "l1", "k": None},
        {"variant": "jumprelu", "k": None, "l1_coefficient": 0.1},
        {"l0_coefficient": 0.1},
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        _config(**changes)


def _train_on_model(folder: Path, out: str, n_activations: int = 60_000) -> Path:
    config = _config(d_in=24, block_windows=8, batch_size=32, n_activations=n_activations)
    train_sae_on_model(
        folder / "model", folder / "train.bin", folder / out, config, progress=lambda _line: None
    )
    return folder / out


def _prepare(folder: Path) -> Path:
    tiny.write_model(folder / "model")
    tiny.write_tokens(folder / "train.bin")
    return folder


def test_a_dictionary_is_trained_on_a_models_activations(tmp_path: Path) -> None:
    out = _train_on_model(_prepare(tmp_path), "out", n_activations=6_400)
    sae = load_sae(out)
    assert sae.config.hook_point == "blocks.0.mlp.hook_post"
    model = OneLayerModel(tmp_path / "model")
    assert sae.config.model_hash == model.weights_hash
    assert (out / "metrics.jsonl").read_text().count("\n") == 10


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    _train_on_model(_prepare(tmp_path), "out", n_activations=640)
    tiny.write_model(tmp_path / "model", seed=5)
    with pytest.raises(SaeError, match="was made with model_sha256"):
        _train_on_model(tmp_path, "out", n_activations=640)


def test_a_width_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    _prepare(tmp_path)
    with pytest.raises(SaeError, match=r"d_in is 16, but blocks\.0\.mlp\.hook_post .* is 24 wide"):
        train_sae_on_model(tmp_path / "model", tmp_path / "train.bin", tmp_path / "out", _config())


def test_a_batch_mixes_contexts_and_leaves_out_document_starts(tmp_path: Path) -> None:
    _prepare(tmp_path)
    model = tiny.transformer()
    ids = read_token_ids(tmp_path / "train.bin", n_ctx=16, d_vocab=300)
    source = ModelSource(model, ids, layer=0, batch_size=32, block_windows=8, seed=0)
    batches = np.concatenate([source.batch(step) for step in range(source.batches_a_block)])
    windows = source.sampler.batch(0)[:, :-1]
    acts = model.run_to_hook(torch.from_numpy(windows)).acts.detach().numpy()
    kept = {row.tobytes() for row in acts[windows != 0]}
    assert {row.tobytes() for row in batches} == kept
    assert (windows == 0).any()
    window_of = {row.tobytes(): at for at, window in enumerate(acts) for row in window}
    assert len({window_of[row.tobytes()] for row in source.batch(0).numpy()}) > 4
    again = ModelSource(model, ids, layer=0, batch_size=32, block_windows=8, seed=0)
    assert np.array_equal(again.batch(5), source.batch(5))


def test_an_array_is_read_once_an_epoch() -> None:
    x = np.arange(10, dtype=np.float32)[:, None]
    source = ArraySource(x, batch_size=5, seed=0)
    first = np.concatenate([source.batch(0), source.batch(1)]).ravel()
    second = np.concatenate([source.batch(2), source.batch(3)]).ravel()
    assert sorted(first) == sorted(second) == list(range(10))
    assert not np.array_equal(first, second)


def test_the_geometric_median_ignores_an_outlier() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1e4, 1e4]])
    assert float((geometric_median(x) - 0.8).abs().max()) < 0.3


def test_the_scale_brings_rows_to_unit_distance_from_their_mean() -> None:
    x = torch.from_numpy(_planted(1_000)[0])
    scaled = x * unit_scale(x)
    distance = (scaled - scaled.mean(dim=0)).square().sum(dim=1).mean()
    assert float(distance) == pytest.approx(1.0, rel=1e-4)
    assert unit_scale(torch.ones(4, 3)) == 1.0
