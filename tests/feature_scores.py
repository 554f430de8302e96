"""How much of a world's known features a dictionary has found.

1. Directions: each true feature's largest cosine with a decoder row; and a matching that gives each
   true feature a row of its own, with the largest sum of cosines.
2. Firing: where the matched feature fires, against where the true one does, on rows that were not
   trained on.
3. Absorption: a child's feature takes over its parent's direction, and the parent's falls silent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    from feature_worlds import FeatureWorld, Rows
    from numpy.typing import NDArray

    from sae_core.sae import SparseAutoencoder

FOUND = 0.9  # cosine from which a direction counts as found


class Reading(NamedTuple):
    """What a dictionary makes of some rows."""

    W_dec: NDArray[np.float32]
    """(d_sae, d_in) decoder; rows of any length."""

    acts: NDArray[np.float32]
    """(n, d_sae) activations, >= 0."""

    x_hat: NDArray[np.float32]
    """(n, d_in) reconstruction."""


class WorldScores(NamedTuple):
    """Scores on rows that were not trained on."""

    l0: float
    """Mean number of features that fire on a row."""

    fvu: float
    """Squared error / squared deviation from the mean."""

    max_cosine: float
    """Mean over true features of the largest cosine with a decoder row."""

    matched: float
    """Share of true features whose own decoder row has a cosine of at least 0.9."""

    f1: float
    """Mean over true features of the F1 of their own feature's firing; 0 without one."""

    n_dead: int
    """Features of the dictionary that fired on no row."""

    absorbed: float | None
    """Share of the firings of a parent with a child on which its own feature is silent; None:
    the world has no parents.
    """


def read(sae: SparseAutoencoder, rows: Rows) -> Reading:
    """Let a dictionary read rows."""
    with torch.no_grad():
        acts = sae.encode(torch.from_numpy(rows.x))
        x_hat = sae.decode(acts)
    return Reading(sae.W_dec.detach().numpy(), acts.numpy(), x_hat.numpy())


def score(world: FeatureWorld, rows: Rows, reading: Reading) -> WorldScores:
    """Score what a dictionary made of a world's rows."""
    cosines = cosines_of(world.directions, reading.W_dec)
    true, own = linear_sum_assignment(cosines, maximize=True)
    fires, wanted = reading.acts > 0, rows.codes > 0
    found = cosines[true, own] >= FOUND
    miss = np.square(reading.x_hat - rows.x).sum()
    return WorldScores(
        l0=float(fires.sum(axis=1).mean()),
        fvu=float(miss / np.square(rows.x - rows.x.mean(axis=0)).sum()),
        max_cosine=float(cosines.max(axis=1).mean()),
        matched=float(found.sum() / len(cosines)),
        f1=float(f1_scores(fires[:, own], wanted[:, true]).sum() / len(cosines)),
        n_dead=int((~fires.any(axis=0)).sum()),
        absorbed=_absorbed(
            world, wanted, fires, dict(zip(true.tolist(), own.tolist(), strict=True))
        ),
    )


def cosines_of(directions: NDArray[np.float64], W_dec: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give (n_true, d_sae) cosines of unit directions with decoder rows; a row of zeros has 0."""
    norms = np.linalg.norm(W_dec, axis=1)
    return directions @ (W_dec / np.where(norms > 0, norms, 1)[:, None]).T.astype(np.float64)


def f1_scores(fires: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Give (n,) F1 of the columns of fires against those of wanted, (rows, n) each; 0 / 0 is 0."""
    hits = (fires & wanted).sum(axis=0)
    return 2 * hits / np.maximum(1, fires.sum(axis=0) + wanted.sum(axis=0))


def _absorbed(
    world: FeatureWorld,
    wanted: NDArray[np.bool_],
    fires: NDArray[np.bool_],
    own: dict[int, int],
) -> float | None:
    """Count firings of parents with a child, and those of them that their own feature misses."""
    children = np.flatnonzero(world.parents >= 0)
    n_both = n_silent = 0
    for child in children.tolist():
        both = wanted[:, child]  # its parent fires there too
        parent = own.get(int(world.parents[child]))
        n_both += int(both.sum())
        n_silent += int((both & ~fires[:, parent]).sum()) if parent is not None else int(both.sum())
    return n_silent / n_both if n_both else None
