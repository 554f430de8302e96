"""Leaving out the features that fire least."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sae_core.prune import keep_most_used
from sae_core.sae import SaeConfig, SparseAutoencoder
from sae_core.train_sae import train_sae
from sae_core.train_settings import TrainSaeConfig

CONFIG = TrainSaeConfig(8, 24, k=2, n_activations=256, batch_size=64, warm_up_steps=0)


def _dictionary(activation: str, k: int | None = None) -> SparseAutoencoder:
    torch.manual_seed(0)
    sae = SparseAutoencoder(SaeConfig(d_in=6, d_sae=10, activation=activation, k=k))
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(
                torch.randn_like(weight).abs() if weight.ndim == 1 else torch.randn_like(weight)
            )
    return sae.eval()


@pytest.mark.parametrize(("activation", "k"), [("topk", 3), ("relu", None), ("jumprelu", None)])
def test_the_features_that_fire_most_are_kept_in_their_order(
    activation: str, k: int | None
) -> None:
    sae, x = _dictionary(activation, k), torch.randn(200, 6)
    n_fires = (sae.encode(x) > 0).sum(dim=0).tolist()
    wanted = sorted(sorted(range(10), key=lambda i: (-n_fires[i], i))[:4])
    pruned = keep_most_used(sae, x.split(50), 4)
    assert pruned.config == replace(sae.config, d_sae=4)
    for name in ("b_enc", "W_dec") + (("threshold",) if activation == "jumprelu" else ()):
        assert torch.equal(getattr(pruned, name), getattr(sae, name)[wanted])
    assert torch.equal(pruned.W_enc, sae.W_enc[:, wanted])
    assert torch.equal(pruned.b_dec, sae.b_dec)


def test_keeping_all_features_changes_no_activation() -> None:
    sae, x = _dictionary("topk", 3), torch.randn(50, 6)
    assert torch.equal(keep_most_used(sae, [x], 10).encode(x), sae.encode(x))


@pytest.mark.parametrize("n_kept", [0, 2, 11])
def test_too_few_or_too_many_are_refused(n_kept: int) -> None:
    with pytest.raises(ValueError, match=f"n_kept must be in 3..d_sae = 10, got {n_kept}"):
        keep_most_used(_dictionary("topk", 3), [], n_kept)


def test_a_training_keeps_as_many_features_as_it_is_told() -> None:
    x = np.random.default_rng(0).random((512, 8), dtype=np.float32)
    whole = train_sae(x, CONFIG).sae
    kept = train_sae(x, replace(CONFIG, n_kept=16)).sae
    assert kept.config == replace(whole.config, d_sae=16)
    rows = {tuple(row) for row in whole.W_dec.tolist()}
    assert all(tuple(row) in rows for row in kept.W_dec.tolist())


def test_settings_refuse_to_keep_fewer_features_than_are_active_on_a_token() -> None:
    with pytest.raises(ValueError, match=r"n_kept must be in 2\.\.d_sae = 24, got 1"):
        replace(CONFIG, n_kept=1)
