"""Scores of the readers of a text: accuracy, macro-F1 and the lead of the features, with intervals.

1. A reader is a table of counts: tokens by unit (a package), true label and told label.
2. Units are drawn with replacement, the same draws for every reader, so that differences between
   two readers are paired: an easy package is easy for both.
3. The tables of a draw are added up, and accuracy and macro-F1 are read off the sum. An interval
   goes from the 2.5th to the 97.5th percentile of the draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEATURES = "features"  # the reader that all others are compared with
N_RESAMPLES = 1000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class TruthTables:
    """What every reader told, counted."""

    units: tuple[int, ...]
    """What the bootstrap draws: packages, or documents where one package is scored."""

    are_packages: bool
    """Whether the units are packages."""

    tables: dict[str, NDArray[np.int64]]
    """Reader -> (n_units, n_labels, n_labels) tokens; rows are true labels, columns told ones."""


@dataclass(frozen=True)
class TruthRow:
    """How well one reader tells the parser's labels."""

    what: str
    """The reader."""

    accuracy: float
    """Share of tokens told right."""

    macro_f1: float
    """F1 averaged over the labels that occur."""

    low: float | None
    """Lower end of the 95 % interval of the accuracy; None where one unit gives no interval."""

    high: float | None
    """Upper end."""

    macro_f1_low: float | None
    """Lower end of the 95 % interval of the macro-F1."""

    macro_f1_high: float | None
    """Upper end."""

    difference: float | None
    """Accuracy of the reader compared with, the features, minus that of this one; None for itself."""

    difference_low: float | None
    """Lower end of the 95 % interval of the difference, both readers on the same packages."""

    difference_high: float | None
    """Upper end."""

    n_tokens: int
    """Tokens scored."""


class _Drawn(NamedTuple):
    """One reader's scores, of all tokens and of every draw."""

    accuracy: float
    macro_f1: float
    accuracies: NDArray[np.float64]
    """One a draw."""
    macro_f1s: NDArray[np.float64]
    """One a draw."""


def count_table(
    truth: NDArray[np.uint8],
    told: NDArray[np.uint8],
    units: NDArray[np.int64],
    *,
    n_units: int,
    n_labels: int,
) -> NDArray[np.int64]:
    """Count tokens by unit, true label and told label.

    Args:
        truth: (n,) the parser's labels.
        told: (n,) the reader's.
        units: (n,) unit of each token, in 0..n_units - 1.
        n_units: number of units.
        n_labels: number of labels.

    Returns:
        (n_units, n_labels, n_labels) counts.
    """
    cells = (units * n_labels + truth) * n_labels + told
    counts = np.bincount(cells, minlength=n_units * n_labels**2)
    return counts.reshape(n_units, n_labels, n_labels)


def accuracy_of(tables: NDArray[np.number]) -> NDArray[np.float64]:
    """Give the share on the diagonal of each table, (..., n_labels, n_labels) to (...)."""
    right = np.diagonal(tables, axis1=-2, axis2=-1).sum(axis=-1)
    shares: NDArray[np.float64] = right / tables.sum(axis=(-2, -1))
    return shares


def f1_of(tables: NDArray[np.number]) -> NDArray[np.float64]:
    """Give each label's F1, (..., n_labels, n_labels) to (..., n_labels); NaN where it never occurs.

    Example:
        >>> f1_of(np.array([[3, 1, 0], [1, 0, 0], [0, 0, 0]])).tolist()
        [0.75, 0.0, nan]
    """
    n_true, n_told = tables.sum(axis=-1), tables.sum(axis=-2)
    n_right = np.diagonal(tables, axis1=-2, axis2=-1)
    f1 = 2 * n_right / np.maximum(n_true + n_told, 1)
    return np.where(n_true > 0, f1, np.nan)


def macro_f1_of(tables: NDArray[np.number]) -> NDArray[np.float64]:
    """Give the F1 averaged over the labels that occur, (..., n_labels, n_labels) to (...)."""
    mean: NDArray[np.float64] = np.nanmean(f1_of(tables), axis=-1)
    return mean


def rows_of(found: TruthTables, *, against: str = FEATURES) -> list[TruthRow]:
    """Score every reader.

    Args:
        found: the readers' tables.
        against: the reader among them that all others are compared with.

    Returns:
        One row a reader, in the order of the tables.
    """
    draws = unit_draws(len(found.units))
    scores = {what: _drawn(tables, draws) for what, tables in found.tables.items()}
    n_tokens = int(found.tables[against].sum())
    first = scores[against]
    return [
        _row(what, one, None if what == against else first, n_tokens)
        for what, one in scores.items()
    ]


def unit_draws(n_units: int) -> NDArray[np.float64]:
    """Give how often each unit is drawn, (N_RESAMPLES, n_units); of one unit nothing is drawn."""
    if n_units == 1:
        return np.zeros((0, 1))
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = (rng.integers(n_units, size=n_units) for _ in range(N_RESAMPLES))
    return np.stack([np.bincount(draw, minlength=n_units) for draw in drawn]).astype(float)


def interval_of(values: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """Give the 95 % interval of the draws' values; none where there was no unit to draw another from."""
    if len(values) == 0:
        return None, None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _drawn(tables: NDArray[np.int64], draws: NDArray[np.float64]) -> _Drawn:
    whole, n_labels = tables.sum(axis=0), tables.shape[-1]
    flat = tables.reshape(len(tables), -1)  # (n_units, n_labels ** 2)
    sums = (draws @ flat).reshape(-1, n_labels, n_labels)
    return _Drawn(
        float(accuracy_of(whole)), float(macro_f1_of(whole)), accuracy_of(sums), macro_f1_of(sums)
    )


def _row(what: str, one: _Drawn, first: _Drawn | None, n_tokens: int) -> TruthRow:
    low, high = interval_of(one.accuracies)
    f1_low, f1_high = interval_of(one.macro_f1s)
    ends = (None, None) if first is None else interval_of(first.accuracies - one.accuracies)
    return TruthRow(
        what=what,
        accuracy=one.accuracy,
        macro_f1=one.macro_f1,
        low=low,
        high=high,
        macro_f1_low=f1_low,
        macro_f1_high=f1_high,
        difference=None if first is None else first.accuracy - one.accuracy,
        difference_low=ends[0],
        difference_high=ends[1],
        n_tokens=n_tokens,
    )
