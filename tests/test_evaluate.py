from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional

from sae_core import evaluate_sums
from sae_core.errors import ModelError, SaeError, TextError
from sae_core.evaluate import evaluate, evaluate_many
from sae_core.evaluate_result import EvaluateResult, measure_rows
from sae_core.evaluate_sums import DocumentSums, interval, window_batches
from sae_core.sae import SaeConfig, SparseAutoencoder

if TYPE_CHECKING:
    from sae_core.language_model import OneLayerModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OneLayerModel:
    return tiny.language_model(tmp_path_factory.mktemp("model"))


def _documents(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 300, size) for size in sizes]


def _random_sae(d_sae: int = 30, seed: int = 1) -> SparseAutoencoder:
    sae = SparseAutoencoder(SaeConfig(24, d_sae, "topk", 4))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.normal_(generator=generator)
    return sae


def _half_of_the_neurons() -> SparseAutoencoder:
    """Rebuild the first 12 neurons exactly, and miss the others."""
    sae = SparseAutoencoder(SaeConfig(24, 12, "relu"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(24)[:, :12])
        sae.W_dec.copy_(torch.eye(24)[:12])
    return sae


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
    sae = _random_sae()
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
    fit = torch.linalg.lstsq(recovered.reshape(-1, 1), values.reshape(-1, 1)).solution.item()
    assert found.reconstruction_bias == pytest.approx(1 / fit, rel=1e-4)
    densities = [n / 53 for n in fires.sum(dim=0).tolist() if n]
    lows = {float(low): n for low, n in found.density_histogram.items()}
    assert sum(lows.values()) == len(densities)
    for low, n in lows.items():
        assert n == sum(10**low <= density < 10 ** (low + 0.5) for density in densities)


def test_a_document_weighs_by_its_sums_and_those_add_up_to_the_total(model: OneLayerModel) -> None:
    sae, documents = _random_sae(), _documents(40, 3, 0, 100, 1)
    whole = evaluate(model, sae, documents)
    alone = [evaluate(model, sae, [document]) for document in documents if len(document)]
    assert whole.n_documents == len(alone) == 4
    assert whole.n_tokens == sum(one.n_tokens for one in alone) == 144
    shares = [one.n_tokens / whole.n_tokens for one in alone]
    assert whole.l0 == pytest.approx(sum(s * one.l0 for s, one in zip(shares, alone, strict=True)))
    n_predicted = [40 - 2, 3, 100 - 6, 1]  # windows of 16 + ..., the start token predicts the first
    for name in ("loss_clean", "loss_sae", "loss_zero"):
        summed = sum(n * getattr(one, name) for n, one in zip(n_predicted, alone, strict=True))
        assert getattr(whole, name) == pytest.approx(summed / sum(n_predicted), rel=1e-5)


def test_intervals_are_those_of_documents_really_drawn_again(
    model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("N_RESAMPLES", "DRAWS_AT_ONCE"):
        monkeypatch.setattr(evaluate_sums, name, 20)
    sae, documents = _random_sae(), _documents(20, 50, 9, 33)
    found = evaluate(model, sae, documents)
    draws = np.random.default_rng(evaluate_sums.BOOTSTRAP_SEED).integers(4, size=(20, 4))
    drawn = [evaluate(model, sae, [documents[at] for at in draw]) for draw in draws]
    for name in ("l0", "fvu", "loss_recovered"):
        low, high = np.percentile([getattr(one, name) for one in drawn], [2.5, 97.5])
        assert getattr(found, f"{name}_low") == pytest.approx(low, rel=1e-5)
        assert getattr(found, f"{name}_high") == pytest.approx(high, rel=1e-5)
    assert found.fvu_low < found.fvu_high


def test_intervals_hold_the_estimate_and_shrink_with_more_documents(model: OneLayerModel) -> None:
    sae = SparseAutoencoder(SaeConfig(24, 30, "relu"))
    sae.load_state_dict(_random_sae().state_dict())
    few, many = (evaluate(model, sae, _documents(*[25] * n)).to_dict() for n in (6, 96))
    for name in ("l0", "fvu", "loss_recovered"):
        widths = [one[f"{name}_high"] - one[f"{name}_low"] for one in (few, many)]
        assert 0 < widths[1] < widths[0] / 2, name
        for one in (few, many):
            assert one[f"{name}_low"] <= one[name] <= one[f"{name}_high"]


def test_one_document_has_no_interval(model: OneLayerModel) -> None:
    found = evaluate(model, _random_sae(), _documents(60, 0)).to_dict()
    assert found["n_documents"] == 1
    ends = [f"{name}_{end}" for name in ("l0", "fvu", "loss_recovered") for end in ("low", "high")]
    assert [found[end] for end in ends] == [None] * 6


def test_draws_without_a_value_are_left_out_of_an_interval() -> None:
    assert interval(np.array([np.nan, 2.0, np.nan])) == (2.0, 2.0)
    assert interval(np.array([np.nan])) == interval(np.zeros(0)) == (None, None)


@pytest.mark.parametrize("start_token", [None, 0])
def test_windows_hold_each_token_once_and_never_two_documents(start_token: int | None) -> None:
    documents = [np.arange(1, n + 1) + 100 * at for at, n in enumerate([5, 0, 1, 9, 4])]
    batches = list(window_batches(documents, n_ctx=4, start_token=start_token, size=3))
    assert all(len(batch.documents) == 3 for batch in batches[:-1])
    text = np.concatenate([batch.token_ids[batch.is_text] for batch in batches])
    assert text.tolist() == np.concatenate(documents).tolist()
    for batch in batches:
        assert (batch.is_read.sum() - batch.is_text.sum()) == batch.is_led.sum()
        for ids, is_text, number in zip(
            batch.token_ids, batch.is_text, batch.documents, strict=True
        ):
            assert set(ids[is_text] // 100) <= {[0, 2, 3, 4][number]}
    assert sum(batch.is_led.sum() for batch in batches) == (0 if start_token is None else 4)


def test_rows_of_windows_are_added_to_their_documents() -> None:
    sums = DocumentSums(2)
    assert sums.table().shape == (0, 2)
    sums.add(np.array([0, 0, 1]), np.array([[1.0, 10], [2, 20], [4, 40]]))
    sums.add(np.array([1, 2]), np.array([[8.0, 80], [16, 160]]))
    assert sums.table().tolist() == [[3, 30], [12, 120], [16, 160]]


def test_several_dictionaries_share_one_pass_of_the_model(
    model: OneLayerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    saes, documents = [_random_sae(), SparseAutoencoder.neurons(24), _zero_sae()], _documents(90, 4)
    alone = [evaluate(model, sae, documents) for sae in saes]
    n_runs = []
    run_to_hook = model.run_to_hook
    monkeypatch.setattr(
        model, "run_to_hook", lambda *given: (n_runs.append(1), run_to_hook(*given))[1]
    )
    counted: list[int] = []
    assert evaluate_many(model, saes, documents, progress=counted.append) == alone
    assert len(n_runs) == len(counted) == 1
    assert counted == [94]


def test_a_table_has_a_column_a_dictionary_and_names_the_tokens_of_the_dead(
    model: OneLayerModel,
) -> None:
    found = evaluate_many(model, [_random_sae(), SparseAutoencoder.neurons(24)], _documents(90, 4))
    rows = measure_rows(found)
    assert {tuple(row) for row in rows} == {("", "topk", "neurons")}
    by_measure = {row[""]: row for row in rows}
    assert by_measure["loss recovered"]["neurons"] == "1 (1 to 1)"
    assert "on 94 tokens of 2 documents" in by_measure
    n_dead = found[0].n_dead
    assert by_measure["dead: never fired in 94 tokens"]["topk"] == (
        f"{n_dead} ({100 * n_dead / 30:.1f} %)"
    )


def test_numbers_that_are_not_finite_name_the_document(model: OneLayerModel) -> None:
    broken = tiny.transformer()
    broken.W_E.data[299] = 3e38
    documents = [document % 299 for document in _documents(20, 30)]
    documents[1][3] = 299
    found = model.module
    model.module = broken
    try:
        with pytest.raises(ModelError, match="not finite on document 2 of 2"):
            evaluate(model, _random_sae(), documents)
    finally:
        model.module = found


def test_what_is_missed_makes_lengths_smaller_but_is_no_shrinkage(model: OneLayerModel) -> None:
    found = evaluate(model, _half_of_the_neurons(), _documents(50))
    assert found.norm_ratio < 0.9
    assert found.reconstruction_bias == pytest.approx(1)
    assert evaluate(model, _zero_sae(), _documents(50)).reconstruction_bias is None


def test_a_dictionary_that_shrinks_by_half_has_ratio_and_bias_of_half(model: OneLayerModel) -> None:
    sae = SparseAutoencoder(SaeConfig(24, 24, "relu"))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(24))
        sae.W_dec.copy_(torch.eye(24) / 2)
    found = evaluate(model, sae, _documents(50))
    assert found.norm_ratio == pytest.approx(0.5)
    assert found.reconstruction_bias == pytest.approx(0.5)


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
    found = evaluate(model, SparseAutoencoder.neurons(24), _documents(30, 20))
    fields = json.loads(json.dumps(found.to_dict()))
    assert EvaluateResult(**fields) == found
    names = {"sae", "n_tokens", "l0", "fvu", "loss_clean", "loss_sae", "loss_zero"}
    names |= {"loss_recovered", "n_dead", "n_ultralow", "dead_share", "n_documents", "n_features"}
    for name in ("l0", "fvu", "loss_recovered"):
        names |= {f"{name}_low", f"{name}_high"}
    names |= {"norm_ratio", "reconstruction_bias", "decoder_cosine", "density_histogram"}
    assert set(fields) == names


@pytest.mark.parametrize("sizes", [(), (0,), (0, 0)])
def test_text_without_a_prediction_is_refused(model: OneLayerModel, sizes: tuple[int]) -> None:
    with pytest.raises(TextError, match="no two tokens in a row"):
        evaluate(model, _zero_sae(), _documents(*sizes))


def test_a_dictionary_of_another_width_is_refused(model: OneLayerModel) -> None:
    sae = SparseAutoencoder(SaeConfig(25, 10, "relu"))
    with pytest.raises(SaeError, match=r"reads 25 numbers, blocks\.0\.mlp\.hook_post .* has 24"):
        evaluate(model, sae, _documents(30))
