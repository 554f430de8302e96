"""Interventions: features taken out of the model or pinned at positions, and the logits that follow.

1. `pin` adds (value - f_i(p)) * W_dec[i] to the activations at the hook point, `ablate` is a pin to
   0. What the dictionary does not explain, its error, stays in place.
2. `logits_at` gives the next-token logits at changed positions, each position changed by itself. In
   the model's last layer nothing else depends on it, so that only the position itself is computed;
   before later layers, the window up to it is.

Within one hook point no other way leads from feature to feature: attention of that layer comes
before the hook point, so a change at p reaches the same hook point at p + 1 through the token alone.
Attention would carry it to features of a later layer, which are those of another dictionary.

Source: Bricken et al. 2023, "Feature Ablations"; pinned features, ibid., "Interface".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from sae_core.transformer import HookState

if TYPE_CHECKING:
    from torch import Tensor

    from sae_core.language_model import LanguageModel
    from sae_core.sae import SparseAutoencoder

ROWS_AT_ONCE = 256  # positions whose features are held dense: 4 MB at 4,096 features
WINDOWS_AT_ONCE = 8  # copies of windows that go through later layers together


class Places(NamedTuple):
    """Positions of a batch of windows."""

    rows: Tensor
    """(n,) int64 window of each."""

    pos: Tensor
    """(n,) int64 position in the window."""


def ablate(state: HookState, sae: SparseAutoencoder, places: Places, features: Tensor) -> HookState:
    """Take features out at positions; see `pin`."""
    return pin(state, sae, places, features, torch.zeros(len(features)))


def pin(
    state: HookState, sae: SparseAutoencoder, places: Places, features: Tensor, values: Tensor
) -> HookState:
    """Give a forward pass in which features have other activations at positions.

    Args:
        state: stopped where the dictionary reads; left as it is.
        sae: the dictionary.
        places: n positions; one may occur several times, with different features.
        features: (n,) int64 the feature that is changed at each.
        values: (n,) the activation that it gets, in the units of the dictionary.

    Returns:
        A new state; run on with `LanguageModel.logits`.
    """
    found = feature_acts(state, sae, places, features)
    steps = (values.to(found) - found)[:, None] * sae.W_dec[features].to(found)
    acts = state.acts.index_put(tuple(places), steps, accumulate=True)
    return state._replace(acts=acts)


@torch.no_grad()
def feature_acts(
    state: HookState, sae: SparseAutoencoder, places: Places, features: Tensor
) -> Tensor:
    """Give (n,) activations >= 0 of one feature at each of n positions."""
    acts = state.acts[places.rows, places.pos]  # (n, d_in)
    parts = zip(torch.split(acts, ROWS_AT_ONCE), torch.split(features, ROWS_AT_ONCE), strict=True)
    return torch.cat([sae.encode(x).gather(1, of[:, None])[:, 0] for x, of in parts])


@torch.no_grad()
def logits_at(model: LanguageModel, state: HookState, places: Places, acts: Tensor) -> Tensor:
    """Give the next-token logits at positions, each changed in a copy of its own.

    Args:
        model: the language model.
        state: stopped at a hook point.
        places: n positions.
        acts: (n, d_in) what stands at the hook point there instead.

    Returns:
        (n, d_vocab).
    """
    if state.layer == model.n_layers - 1:
        resid_mid = state.resid_mid[places.rows, places.pos]
        return model.logits(HookState(acts[None], resid_mid[None], state.layer))[0]
    order = torch.argsort(places.pos, stable=True)  # copies of like length go together
    parts = [
        _copied(model, state, places, acts, some) for some in torch.split(order, WINDOWS_AT_ONCE)
    ]
    return torch.cat(parts)[torch.argsort(order)]


def _copied(
    model: LanguageModel, state: HookState, places: Places, acts: Tensor, some: Tensor
) -> Tensor:
    """Give the logits at some of the positions, by copies of their windows up to the last one."""
    rows, pos = places.rows[some], places.pos[some]
    end = int(pos.max()) + 1
    changed = state.acts[rows, :end]  # (some, end, d_in)
    copies = torch.arange(len(some), device=changed.device)
    changed[copies, pos] = acts[some]
    copied = HookState(changed, state.resid_mid[rows, :end], state.layer)
    return model.logits(copied)[copies, pos]
