from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional

from sae_core.errors import SaeError, TextError
from sae_core.evaluate import EvaluateResult, evaluate
from sae_core.sae import SaeConfig, SparseAutoencoder

if TYPE_CHECKING:
    from sae_core.language_model import OneLayerModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OneLayerModel:
    return tiny.language_model(tmp_path_factory.mktemp("model"))


def _documents(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 300, size) for size in sizes]


def _zero_sae(d_sae: int = 10) -> SparseAutoencoder:
    return SparseAutoencoder(SaeConfig(24, d_sae, "relu"))


def test_neurons_recover_the_whole_loss(model: OneLayerModel) -> None:
    found = evaluate(model, SparseAutoencoder.neurons(24), _documents(40, 3, 100))
    assert found.n_tokens == 143
    assert found.fvu == 0
    assert found.loss_sae == found.loss_clean != found.loss_zero
    assert found.loss_recovered == 1


def test_a_dictionary_of_zeros_recovers_nothing(model: OneLayerModel) -> None:
    found = evaluate(model, _zero_sae(), _documents(200))
    assert found.loss_sae == found.loss_zero
    assert found.loss_recovered == 0
    assert found.l0 == 0
    assert found.n_dead == 10
    assert found.n_ultralow == 0
    assert found.dead_share == 1
    assert found.fvu > 1


def test_losses_and_error_equal_a_loop_over_windows(model: OneLayerModel) -> None:
    sae = SparseAutoencoder(SaeConfig(24, 30, "topk", 4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.normal_(generator=generator)
    documents = _documents(15, 31, 7)  # windows of 16, 16 + 16, 8 with the start token
    clean: list[float] = []
    spliced: list[float] = []
    acts, x, x_hat = [], [], []
    for document in documents:
        ids = torch.tensor([0, *document])
        for first in range(0, len(ids), 16):
            window = ids[None, first : first + 16]
            state = model.run_to_hook(window, sae.hook_point)
            hidden = sae.encode(state.acts).detach()
            changed = sae.decode(hidden).detach()
            kept = window[0] != 0
            acts.append(hidden[0, kept])
            x.append(state.acts[0, kept])
            x_hat.append(changed[0, kept])
            for losses, given in ((clean, state.acts), (spliced, changed)):
                logits = model.logits(state._replace(acts=given))[0, :-1]
                loss = functional.cross_entropy(logits, window[0, 1:], reduction="none")
                losses.extend(loss.tolist())
    found = evaluate(model, sae, documents)
    fires, values, recovered = torch.cat(acts) > 0, torch.cat(x), torch.cat(x_hat)
    deviation = (values - values.mean(dim=0)).square().sum()
    assert found.n_tokens == len(values) == 53
    assert found.l0 == pytest.approx(fires.sum().item() / 53)
    assert found.n_dead == int((~fires.any(dim=0)).sum()) > 0
    assert found.fvu == pytest.approx(((values - recovered).square().sum() / deviation).item())
    assert found.loss_clean == pytest.approx(np.mean(clean), rel=1e-5)
    assert found.loss_sae == pytest.approx(np.mean(spliced), rel=1e-5)
    lengths = [sum(float(row.norm()) for row in rows) for rows in (recovered, values)]
    assert found.norm_ratio == pytest.approx(lengths[0] / lengths[1], rel=1e-5)
    densities = [n / 53 for n in fires.sum(dim=0).tolist() if n]
    lows = {float(low): n for low, n in found.density_histogram.items()}
    assert sum(lows.values()) == len(densities)
    for low, n in lows.items():
        assert n == sum(10**low <= density < 10 ** (low + 0.5) for density in densities)


def test_a_dictionary_that_shrinks_by_half_has_a_norm_ratio_of_half(model: OneLayerModel) -> None:
    sae = SparseAutoencoder(SaeConfig(24, 24, "relu"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(24))
        sae.W_dec.copy_(torch.eye(24) / 2)
    assert evaluate(model, sae, _documents(50)).norm_ratio == pytest.approx(0.5)


def test_decoder_rows_at_right_angles_have_cosine_zero_and_copies_one(
    model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[evaluate.__module__], "SLAB_FEATURES", 7)
    neurons = SparseAutoencoder.neurons(24)
    assert evaluate(model, neurons, _documents(20)).decoder_cosine == 0
    twice = SparseAutoencoder(SaeConfig(24, 48, "relu"))
    with torch.no_grad():
        twice.W_dec.copy_(torch.cat([torch.eye(24), 3 * torch.eye(24)]))
    assert evaluate(model, twice, _documents(20)).decoder_cosine == pytest.approx(1)
    single = SparseAutoencoder(SaeConfig(24, 1, "relu"))
    assert evaluate(model, single, _documents(20)).decoder_cosine == 0


def test_the_result_is_plain_json(model: OneLayerModel) -> None:
    found = evaluate(model, SparseAutoencoder.neurons(24), _documents(30))
    fields = json.loads(json.dumps(found.to_dict()))
    assert EvaluateResult(**fields) == found
    names = {"sae", "n_tokens", "l0", "fvu", "loss_clean", "loss_sae", "loss_zero"}
    names |= {"loss_recovered", "n_dead", "n_ultralow", "dead_share"}
    assert set(fields) == names | {"norm_ratio", "decoder_cosine", "density_histogram"}


@pytest.mark.parametrize("sizes", [(), (0,), (0, 0)])
def test_text_without_a_prediction_is_refused(model: OneLayerModel, sizes: tuple[int]) -> None:
    with pytest.raises(TextError, match="no two tokens in a row"):
        evaluate(model, _zero_sae(), _documents(*sizes))


def test_a_dictionary_of_another_width_is_refused(model: OneLayerModel) -> None:
    sae = SparseAutoencoder(SaeConfig(25, 10, "relu"))
    with pytest.raises(SaeError, match=r"reads 25 numbers, blocks\.0\.mlp\.hook_post .* has 24"):
        evaluate(model, sae, _documents(30))
