"""Interventions change what they should and nothing else; drawn effects are those of all tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import shell
import tiny
import torch

from sae_core.causal import Drawn, EdgeSums, draw_next, exhaustive_effects
from sae_core.draw_plan import Draws, ReadWindows, batches, plan_draws, portions
from sae_core.intervene import Places, ablate, feature_acts, logits_at, pin
from sae_core.language_model import OneLayerModel
from sae_core.sae import SparseAutoencoder, load_sae
from sae_core.schema import SparseActs, TokenTable

if TYPE_CHECKING:
    from pathlib import Path

    from sae_core.transformer import HookState

SEEDS = [0, 1, 2]


def parts(
    folder: Path, *, seed: int = 0, n_layers: int = 1, layer: int = 0, n_windows: int = 4
) -> tuple[OneLayerModel, SparseAutoencoder, torch.Tensor, HookState, str]:
    """Make a tiny model, a dictionary and windows of random tokens, run to the hook point."""
    model = OneLayerModel(tiny.write_model(folder / "model", seed=seed, n_layers=n_layers))
    sae = load_sae(shell.write_sae(folder / "sae", seed=seed))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, model.d_vocab, (n_windows, 12), generator=generator)
    hook_point = str(model.hook_points[layer])
    return model, sae, ids, model.run_to_hook(ids, hook_point), hook_point


def firings(state: HookState, sae: SparseAutoencoder) -> Draws:
    """List every firing of every feature before the last position, one draw each."""
    acts = sae.encode(state.acts[:, :-1]).numpy()
    rows, pos, sources = np.nonzero(acts)
    return Draws(rows, pos, sources, acts[rows, pos, sources], np.zeros(len(rows)))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_put_after_a_place_are_read_as_if_they_had_come(
    tmp_path: Path, seed: int, layer: int
) -> None:
    model, _, ids, _, hook_point = parts(tmp_path, seed=seed, n_layers=2, layer=layer)
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(0, 11, (len(ids), 5), generator=generator)
    tokens = torch.randint(1, model.d_vocab, (len(ids), 5), generator=generator)
    found = model.acts_after(ids, places, tokens, hook_point)
    for row, column in np.ndindex(*places.shape):
        place = int(places[row, column])
        window = torch.cat([ids[row, : place + 1], tokens[row, column, None]])[None]
        whole = model.run_to_hook(window, hook_point).acts[0, -1]
        torch.testing.assert_close(found[row, column], whole, atol=1e-4, rtol=1e-4)
    assert (found > 0).any()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_ablated_position_gives_the_logits_of_the_whole_window_with_it(
    tmp_path: Path, seed: int, layer: int
) -> None:
    model, sae, _, state, _ = parts(tmp_path, seed=seed, n_layers=2, layer=layer)
    some = firings(state, sae).take(np.arange(seed, 90, 7))
    places = Places(torch.from_numpy(some.rows), torch.from_numpy(some.pos))
    steps = torch.from_numpy(some.acts)[:, None] * sae.W_dec[torch.from_numpy(some.sources)]
    found = logits_at(model, state, places, state.acts[places.rows, places.pos] - steps)
    for at in range(len(some.rows)):
        one = Places(places.rows[at : at + 1], places.pos[at : at + 1])
        changed = ablate(state, sae, one, torch.tensor([some.sources[at]]))
        whole = model.logits(changed)[one.rows, one.pos][0]
        torch.testing.assert_close(found[at], whole, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(whole, model.logits(state)[one.rows, one.pos][0], atol=1e-3)


def test_ablation_keeps_what_the_dictionary_does_not_explain(tmp_path: Path) -> None:
    _, sae, _, state, _ = parts(tmp_path)
    some = firings(state, sae)
    row, pos, source = some.rows[5], some.pos[5], some.sources[5]
    one = Places(torch.tensor([row]), torch.tensor([pos]))
    changed = ablate(state, sae, one, torch.tensor([source])).acts[row, pos]
    acts = sae.encode(state.acts[row, pos])
    error = state.acts[row, pos] - sae.decode(acts)
    acts[source] = 0
    torch.testing.assert_close(changed, sae.decode(acts) + error, atol=1e-5, rtol=1e-5)
    assert error.norm() > 0.1


def test_a_pinned_feature_moves_by_its_direction_and_others_add_up(tmp_path: Path) -> None:
    _, sae, _, state, _ = parts(tmp_path)
    places = Places(torch.tensor([1, 1, 2]), torch.tensor([3, 3, 4]))
    features, values = torch.tensor([7, 9, 7]), torch.tensor([2.0, 0.5, 1.0])
    before = feature_acts(state, sae, places, features)
    changed = pin(state, sae, places, features, values)
    steps = (values - before)[:, None] * sae.W_dec[features]
    moved = changed.acts - state.acts
    torch.testing.assert_close(moved[1, 3], steps[0] + steps[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved[2, 4], steps[2], atol=1e-5, rtol=1e-5)
    moved[1, 3] = moved[2, 4] = 0
    assert not moved.any()


@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_change_reaches_its_position_and_later_layers_after_it_only(
    tmp_path: Path, n_layers: int
) -> None:
    model, sae, _, state, _ = parts(tmp_path, n_layers=n_layers)
    one = Places(torch.tensor([1]), torch.tensor([4]))
    changed = model.logits(pin(state, sae, one, torch.tensor([3]), torch.tensor([9.0])))
    differs = ((changed - model.logits(state)).abs() > 1e-4).any(dim=-1)
    expected = torch.zeros_like(differs)
    expected[1, 4 : (5 if n_layers == 1 else None)] = True
    assert torch.equal(differs, expected)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_drawn_effects_are_those_of_all_tokens(tmp_path: Path, seed: int, layer: int) -> None:
    n_draws = 4000
    model, sae, ids, state, at = parts(
        tmp_path, seed=seed, n_layers=layer + 1, layer=layer, n_windows=1
    )
    given = firings(state, sae)
    rng = np.random.default_rng(seed)
    sources = np.unique(given.sources)[:2]
    sums = EdgeSums(np.repeat(sources, 32), np.tile(np.arange(32), 2), 32)
    truth = []
    for source in sources:
        own = given.take(given.sources == source)
        truth.append(exhaustive_effects(model, sae, ids, own, at).mean(axis=0))
        drawn = own.take(rng.integers(0, len(own.rows), n_draws))
        drawn = drawn._replace(chances=rng.random(n_draws))
        sums.add(drawn.sources, draw_next(model, sae, ids, state, drawn, hook_point=at))
    mean, stderr, n = sums.effects()
    exact = np.concatenate(truth)
    assert (n == n_draws).all()
    assert np.abs(exact).max() > 0.02
    assert (stderr[np.abs(exact) > 0.01] > 0).all()
    assert (np.abs(mean - exact) <= 4 * stderr + 1e-3).all()
    errors = (mean - exact)[stderr > 1e-3] / stderr[stderr > 1e-3]
    assert 0.6 < np.sqrt(np.mean(errors**2)) < 1.4  # neither too small nor too large


def test_effects_of_edges_keep_the_order_and_say_nothing_without_draws() -> None:
    sums = EdgeSums(np.array([3, 1, 2]), np.array([0, 4, 4]), 5)
    fires = SparseActs(
        np.array([0, 2, 3, 3]), np.array([0, 4, 4], np.uint32), np.ones(3, np.float32)
    )
    sums.add(np.array([3, 1, 1]), Drawn(np.array([0.5, 0.25, -1.0]), fires))
    mean, stderr, n = sums.effects()
    assert n.tolist() == [1, 2, 0]
    assert mean[1] == 0.125
    assert stderr[1] == pytest.approx(np.std([0.25, 0.0], ddof=1) / np.sqrt(2))
    assert np.isnan([mean[0], mean[2], stderr[0], stderr[2]]).all()


def table_of(doc_ids: list[int], window_ids: list[int]) -> TokenTable:
    """Make tokens 10, 11, ...; feature 1 fires on every other token, 2 never before a token."""
    n = len(doc_ids)
    at = np.arange(n)
    rows = [[1] if t % 2 == 0 else [] for t in at]
    rows[-1] = [2]
    features = np.array([i for row in rows for i in row], np.uint32)
    return TokenTable(
        np.array(doc_ids, np.uint32), np.array(window_ids, np.uint32), at.astype(np.uint32),
        (10 + at).astype(np.uint32), at, at + 1, np.cumsum([0, *(len(row) for row in rows)]),
        features, np.arange(1, len(features) + 1, dtype=np.float32), np.zeros(len(features), np.float32),
    )  # fmt: skip


def test_windows_are_read_again_with_their_start_token_and_warm_up() -> None:
    tokens = table_of([0] * 7 + [2] * 3, [0, 0, 0, 0, 1, 1, 1, 5, 5, 5])
    windows = ReadWindows.of(tokens, warm_up=2, has_start=True)
    ids = windows.token_ids(tokens, np.array([0, 1, 2]), 9)
    assert ids.tolist() == [[9, 10, 11, 12, 13], [12, 13, 14, 15, 16], [9, 17, 18, 19, 0]]
    bare = ReadWindows.of(tokens, warm_up=0, has_start=False)
    assert bare.token_ids(tokens, np.array([2]), None).tolist() == [[17, 18, 19]]


def test_draws_fall_where_the_source_fires_before_a_token() -> None:
    tokens = table_of([0] * 7 + [2] * 3, [0, 0, 0, 0, 1, 1, 1, 5, 5, 5])
    windows = ReadWindows.of(tokens, warm_up=2, has_start=True)
    draws = plan_draws(tokens, windows, np.array([1, 2]), n_draws=200, seed=3)
    assert len(draws.rows) == 200  # none for feature 2: it fires on the last token only
    assert set(zip(draws.rows.tolist(), draws.pos.tolist(), draws.acts.tolist(), strict=True)) == {
        (0, 1, 1.0), (0, 3, 2.0), (1, 2, 3.0), (2, 2, 5.0),
    }  # fmt: skip
    again = plan_draws(tokens, windows, np.array([1]), n_draws=200, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(draws, again, strict=True))
    seen = []
    for chosen, batch in batches(draws, 2):
        for part in portions(batch, 30):
            assert part.columns.max() < 30
            seen.append(part._replace(rows=chosen[part.rows]))
    joined = Draws(*(np.concatenate(columns) for columns in zip(*seen, strict=True)))
    assert sorted(zip(*joined, strict=True)) == sorted(zip(*draws, strict=True))
