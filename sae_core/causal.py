"""Causal effects of edges: how much a firing of i raises, through the next token, the chance of j.

    effect(i, j) = mean over positions p where i fires of
                   sum over tokens v of (P(v) - P_abl(v)) * 1[f_j(p + 1) > 0 after v]

P is the model's next-token distribution at p, P_abl that with feature i taken out at p.

1. `Draws` (`sae_core.draw_plan`) name positions at which sources fire; `logits_at` gives P and P_abl.
2. One token x is drawn at each, from q = (1 - blend) P + blend P_abl. The weight (P(x) - P_abl(x)) /
   q(x) makes the mean over draws that of P - P_abl, without bias. With blend 0 it is 1 - P_abl(x) /
   P(x), which has no bound where i suppresses x: a rare draw is then worth more than all others, and
   the standard error does not see it coming. A blend of 0.2 keeps weights in -5..1.25.
3. The model reads x after the window up to p. All features that fire on it are hit, so that one draw
   serves all targets of a source. The mean of weight times hit is the effect.
4. `exhaustive_effects` sums over the whole vocabulary instead: the truth for small ones.

Source: the blend is the defensive mixture of Hesterberg 1995, "Weighted Average Importance Sampling".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from sae_core.intervene import Places, logits_at

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from sae_core.draw_plan import Draws
    from sae_core.language_model import LanguageModel
    from sae_core.sae import SparseAutoencoder
    from sae_core.schema import SparseActs
    from sae_core.transformer import HookState

BLEND = 0.2  # of P_abl in what is drawn from; at worst a quarter more draws, for bounded weights


class Drawn(NamedTuple):
    """What the drawn tokens brought."""

    weights: NDArray[np.float64]
    """(n,) (P(x) - P_abl(x)) / q(x), in -1 / blend .. 1 / (1 - blend)."""

    fires: SparseActs
    """The features that fire on x, a row a draw."""


class EdgeSums:
    """Sums over draws, for the edges that are asked for."""

    def __init__(
        self, sources: NDArray[np.integer], targets: NDArray[np.integer], d_sae: int
    ) -> None:
        """Start with nothing; the edges, each once, keep their order in `effects`."""
        self._d_sae = d_sae
        keys = sources.astype(np.int64) * d_sae + targets.astype(np.int64)
        self._order = np.argsort(keys)
        self._keys = keys[self._order]
        self._sources = sources
        self._sums = np.zeros((2, len(keys)))
        self._n_draws = np.zeros(d_sae, np.int64)

    def add(self, sources: NDArray[np.int64], drawn: Drawn) -> None:
        """Count draws, each of one source."""
        self._n_draws += np.bincount(sources, minlength=self._d_sae)
        n_fires = np.diff(drawn.fires.indptr)
        keys = np.repeat(sources * self._d_sae, n_fires) + drawn.fires.indices.astype(np.int64)
        at = np.searchsorted(self._keys, keys)
        is_asked = (at < len(self._keys)) & (self._keys[at % max(1, len(self._keys))] == keys)
        weights = np.repeat(drawn.weights, n_fires)[is_asked]
        for row, power in enumerate((weights, weights**2)):
            self._sums[row] += np.bincount(at[is_asked], weights=power, minlength=len(self._keys))

    def effects(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Give (n_edges,) effects, their standard errors, and draws; nan with fewer than two."""
        n = self._n_draws[self._sources]
        sums = np.empty_like(self._sums)
        sums[:, self._order] = self._sums
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = sums[0] / n
            spread = np.maximum(sums[1] / n - mean**2, 0) * n / (n - 1)
            stderr = np.sqrt(spread / n)
        mean[n < 2], stderr[n < 2] = np.nan, np.nan
        return mean, stderr, n


def draw_next(
    model: LanguageModel,
    sae: SparseAutoencoder,
    token_ids: Tensor,
    state: HookState,
    draws: Draws,
    *,
    hook_point: str,
    blend: float = BLEND,
) -> Drawn:
    """Draw a token at each position, and see what fires on it.

    Args:
        model: the language model.
        sae: the dictionary.
        token_ids: (batch, pos) windows.
        state: their forward pass, stopped at the hook point.
        draws: n positions.
        hook_point: where the dictionary reads.
        blend: share of P_abl in what is drawn from, in [0, 1); 0 draws from P.

    Returns:
        Weights and features, in the order of `draws`.
    """
    p, p_ablated = _distributions(model, sae, state, draws)
    q = torch.lerp(p, p_ablated, blend)
    heights = q.cumsum(dim=1)
    aim = torch.from_numpy(draws.chances).to(q)[:, None] * heights[:, -1:]
    token = torch.searchsorted(heights, aim, right=True).clamp(max=q.shape[1] - 1)
    weights = ((p - p_ablated) / q).gather(1, token)[:, 0]
    acts = _acts_on(model, token_ids, draws, token[:, 0], hook_point)
    return Drawn(weights.cpu().numpy(), sae.encode_sparse(acts))


def exhaustive_effects(
    model: LanguageModel,
    sae: SparseAutoencoder,
    token_ids: Tensor,
    draws: Draws,
    hook_point: str,
) -> NDArray[np.float64]:
    """Give the effect at each position on all features, by trying every token of the vocabulary.

    Args:
        model: the language model.
        sae: the dictionary.
        token_ids: (batch, pos) windows.
        draws: n positions; their chances are not looked at.
        hook_point: where the dictionary reads.

    Returns:
        (n, d_sae) change of P(feature fires at the next token) by the source's firing, in -1..1.
    """
    p, p_ablated = _distributions(model, sae, model.run_to_hook(token_ids, hook_point), draws)
    tokens = torch.arange(model.d_vocab)[None]
    found = []
    for row, pos, change in zip(draws.rows, draws.pos, p - p_ablated, strict=True):
        places = torch.full_like(tokens, int(pos))
        acts = model.acts_after(token_ids[row : row + 1], places, tokens, hook_point)
        with torch.no_grad():
            fires = sae.encode(acts[0]) > 0  # (d_vocab, d_sae)
        found.append((change @ fires.to(change)).cpu().numpy())
    return np.stack(found)


def _distributions(
    model: LanguageModel, sae: SparseAutoencoder, state: HookState, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Give (n, d_vocab) P and P_abl, float64: differences of what is nearly equal are needed."""
    device = state.acts.device
    places = Places(torch.from_numpy(draws.rows), torch.from_numpy(draws.pos))
    acts = state.acts[places.rows, places.pos]  # (n, d_in)
    strength = torch.from_numpy(draws.acts).to(device)
    written = sae.W_dec[torch.from_numpy(draws.sources)].to(device)
    with torch.no_grad():
        logits = [
            logits_at(model, state, places, x) for x in (acts, acts - strength[:, None] * written)
        ]
    p, p_ablated = (torch.softmax(rows.double(), dim=1) for rows in logits)
    return p, p_ablated


def _acts_on(
    model: LanguageModel, token_ids: Tensor, draws: Draws, tokens: Tensor, hook_point: str
) -> Tensor:
    """Give (n, d_in) activations on drawn tokens, all of a window at once."""
    columns = draws.columns
    at = torch.from_numpy(draws.rows), torch.from_numpy(columns)
    shape = (len(token_ids), int(columns.max(initial=0)) + 1)
    places, next_ids = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
    places[at] = torch.from_numpy(draws.pos)
    next_ids[at] = tokens.cpu()
    return model.acts_after(token_ids, places, next_ids, hook_point)[at]
