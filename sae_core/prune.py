"""Leave out the features of a dictionary that fire least.

A dictionary that learns with more features than are wanted has none to spare for dead ones: those that fire
most are kept, in their order, and what is left out fired too rarely to be missed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sae_core.sae import SparseAutoencoder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


@torch.no_grad()
def keep_most_used(
    sae: SparseAutoencoder, batches: Iterable[Tensor], n_kept: int
) -> SparseAutoencoder:
    """Give a dictionary of the features that fire on most activations; of equals, the lowest ids.

    Args:
        sae: the dictionary; is left as it is.
        batches: (n, d_in) activations each, on its device.
        n_kept: features to keep, 1 <= n_kept <= d_sae.

    Returns:
        A dictionary of n_kept features, their order kept.

    Raises:
        ValueError: n_kept is not in that range, or below `topk`'s k.
    """
    least = sae.config.k or 1
    if not least <= n_kept <= sae.config.d_sae:
        raise ValueError(f"n_kept must be in {least}..d_sae = {sae.config.d_sae}, got {n_kept}")
    n_fires = torch.zeros(sae.config.d_sae, dtype=torch.int64)
    for batch in batches:
        if batch.device.type == "cpu":
            ids = torch.from_numpy(sae.encode_sparse(batch).indices.astype("int64"))
            n_fires += torch.bincount(ids, minlength=len(n_fires))
        else:
            n_fires += (sae.encode(batch) > 0).sum(dim=0).cpu()
    kept = n_fires.argsort(descending=True, stable=True)[:n_kept].sort().values
    pruned = SparseAutoencoder(replace(sae.config, d_sae=n_kept))
    parts = {
        name: weight if name == "b_dec" else weight.cpu().index_select(int(name == "W_enc"), kept)
        for name, weight in sae.state_dict().items()
    }
    pruned.load_state_dict(parts)
    return pruned.eval()
