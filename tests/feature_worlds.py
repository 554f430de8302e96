"""Activations made of known features: an oracle for dictionaries, as `planted` is for automata.

1. Features are random unit directions, twice as many as dimensions, so that no two are at right
   angles. The n-th fires about in proportion to 1 / (n + 8): some often, most rarely.
2. Which fire on a row is what the kinds differ in:
   `sparse`: each by itself.
   `correlated`: in groups of eight, whose members fire together more often than chance.
   `hierarchical`: in trees; a child fires only where its parent does, at most one child a row, and
   a parent sometimes alone.
3. A row is the sum of the directions that fire, each times a log-normal strength, around an offset,
   with a little noise in every dimension.

Sources: Sharkey, Braun and Millidge 2022, "Taking features out of superposition" (known features,
correlated by a Gaussian); Bussmann et al. 2025 (trees).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import ndtri

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("sparse", "correlated", "hierarchical")
D_IN, N_TRUE = 64, 128
L0 = 4.0  # features that fire on a row
FLATTEN = 8.0  # added to the rank: else the most frequent feature would fire on nearly every row
STRENGTH, SPREAD = 3.0, 0.3  # median of strengths; standard deviation of their logarithm
OFFSET = 2.0  # length
NOISE = 0.1  # standard deviation in each dimension: about 1 % of the variance
GROUP, COPULA = 8, 0.6  # members of a group; correlation of the Gaussians behind two of them
CHILD_SHARES = (0.4, 0.2, 0.15)  # of a parent's rows; on the rest it is alone


class Rows(NamedTuple):
    """Activations, and what they are made of."""

    x: NDArray[np.float32]
    """(n, d_in) activations."""

    codes: NDArray[np.float32]
    """(n, n_true) strength of each true feature; 0 where it does not fire."""


@dataclass(frozen=True)
class FeatureWorld:
    """True features, and how they fire."""

    kind: str
    """One of `KINDS`."""

    seed: int
    """Decides features and rows."""

    directions: NDArray[np.float64]
    """(n_true, d_in) unit rows."""

    density: NDArray[np.float64]
    """(n_true,) expected share of rows on which each fires."""

    groups: NDArray[np.int64]
    """(n_true,) of those with the same number one group or tree is made; -1: alone."""

    parents: NDArray[np.int64]
    """(n_true,) the parent of each feature; -1: none."""

    offset: NDArray[np.float64]
    """(d_in,) what every row is moved by."""

    def rows(self, n: int, *, part: int) -> Rows:
        """Draw rows; each part (0, 1, ...) has rows of its own, the same every time.

        Args:
            n: how many.
            part: 0 to train on, others to score on.
        """
        rng = np.random.default_rng([self.seed, 1 + part])
        fires = _FIRES[self.kind](self, n, rng)
        strengths = STRENGTH * np.exp(SPREAD * rng.standard_normal(fires.shape, np.float32))
        codes = np.where(fires, strengths, np.float32(0))
        noise = NOISE * rng.standard_normal((n, len(self.offset)), np.float32)
        x = codes @ self.directions.astype(np.float32) + self.offset.astype(np.float32) + noise
        return Rows(x, codes)


def feature_world(
    kind: str, *, seed: int, n_true: int = N_TRUE, d_in: int = D_IN, l0: float = L0
) -> FeatureWorld:
    """Make a world.

    Args:
        kind: one of `KINDS`.
        seed: the same seed gives the same world.
        n_true: number of features; a multiple of 8.
        d_in: number of dimensions.
        l0: mean number of features that fire on a row.

    Raises:
        ValueError: the kind is unknown, or n_true is no multiple of 8.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if n_true % GROUP:
        raise ValueError(f"n_true must be a multiple of {GROUP}, got {n_true}")
    rng = np.random.default_rng([seed, 0])
    directions = rng.standard_normal((n_true, d_in))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    offset = rng.standard_normal(d_in)
    offset *= OFFSET / np.linalg.norm(offset)
    groups, parents = np.full((2, n_true), -1)
    density = _by_rank(n_true, l0)
    if kind == "correlated":
        groups = rng.permutation(np.arange(n_true) // GROUP)
    if kind == "hierarchical":
        size = 1 + len(CHILD_SHARES)
        groups, place = np.divmod(np.arange(n_true), size)
        parents = np.where(place > 0, groups * size, -1)
        shares = np.array([1.0, *CHILD_SHARES])
        density = np.outer(_by_rank(n_true // size, l0 / shares.sum()), shares).ravel()
    return FeatureWorld(kind, seed, directions, density, groups, parents, offset)


def _by_rank(n: int, total: float) -> NDArray[np.float64]:
    """Give densities that fall with the rank (Zipf, Mandelbrot) and add up to a total."""
    weights = 1 / (np.arange(n) + FLATTEN)
    return weights * total / weights.sum()


def _sparse(world: FeatureWorld, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    return rng.random((n, len(world.density)), np.float32) < world.density


def _correlated(world: FeatureWorld, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Cut Gaussians that the members of a group share in part."""
    shared = rng.standard_normal((n, int(world.groups.max()) + 1), np.float32)[:, world.groups]
    own = rng.standard_normal((n, len(world.density)), np.float32)
    mixed = np.float32(COPULA**0.5) * shared + np.float32((1 - COPULA) ** 0.5) * own
    return mixed < ndtri(world.density).astype(np.float32)


def _hierarchical(world: FeatureWorld, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw one number a tree: it says whether the parent fires, and which child if any."""
    is_parent = world.parents < 0
    drawn = rng.random((n, int(is_parent.sum()))) / world.density[is_parent]
    fires = np.empty((n, len(world.density)), bool)
    fires[:, is_parent] = drawn < 1
    bounds = np.cumsum([0.0, *CHILD_SHARES])
    for child in range(len(CHILD_SHARES)):
        at = np.flatnonzero(is_parent) + 1 + child
        fires[:, at] = (bounds[child] <= drawn) & (drawn < bounds[child + 1])
    return fires


_FIRES = {"sparse": _sparse, "correlated": _correlated, "hierarchical": _hierarchical}
