"""The best single unit for each family: chosen on one half of the documents, scored on the other.

1. On the first half every unit gets its best F1, with the threshold that reaches it, and its AUC, for every family.
2. A family's unit is the one of the best F1, and with its threshold it is scored on the second half. Another unit may
   have the best AUC; its AUC is taken on the second half, too. Of equals the lowest number is taken.
3. Bare tokens are read alike: a token's activation for a family is the share of its occurrences on the first half that
   belong to it, so that the best threshold is the best set of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from figures.unit_scores import Firings, curves, memberships, told

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from figures.family_masks import Family, Labels
    from figures.family_reading import Reading, Units
    from figures.unit_scores import Memberships

MIN_POSITIVES = (
    100  # tokens in each half, and others; with fewer, a count's relative error is over 10 %
)
TOKENS = "tokens"
DIGITS = 4  # of what is kept: more are noise


@dataclass(frozen=True)
class UnitScore:
    """What the best unit of a reader is worth for a family."""

    unit: int | None
    """Feature or neuron of the best F1 on the first half; None for a set of tokens."""

    threshold: float
    """It says yes above this."""

    f1_chosen: float
    """F1 on the first half, where unit and threshold were chosen."""

    f1: float
    """F1 on the second half, as precision and recall."""

    precision: float
    recall: float

    f1_firing: float
    """F1 on the second half if it says yes wherever it is above 0."""

    auc_unit: int | None
    """Feature or neuron of the best AUC on the first half."""

    auc: float
    """Its AUC on the second half."""


@dataclass(frozen=True)
class FamilyRow:
    """What every reader is worth for a family."""

    family: Family

    n_chosen: int
    """Tokens of the family in the first half."""

    n_scored: int
    """In the second half."""

    n_documents: int
    """Documents of the second half that hold them."""

    scores: dict[str, UnitScore]
    """By reader: the dictionaries, the neurons, bare tokens; empty where the family has too few tokens."""


class Halves(NamedTuple):
    """Tokens of both halves, each numbered for itself."""

    half: NDArray[np.int8]
    """(n_tokens,) 0 or 1."""

    place: NDArray[np.int32]
    """(n_tokens,) number within its half."""

    members: tuple[Memberships, Memberships]
    """The families of the tokens of each half."""

    def part(self, firings: Firings, half: int) -> Firings:
        """Give the firings in one half."""
        here = self.half[firings.rows] == half
        return Firings(self.place[firings.rows[here]], firings.acts[here])


def halves_of(half: NDArray[np.integer], truth: NDArray[np.bool_]) -> Halves:
    """Part the tokens.

    Args:
        half: (n_tokens,) 0 or 1.
        truth: (n_families, n_tokens) whether a token belongs.
    """
    place = np.empty(len(half), np.int32)
    for one in (0, 1):
        here = half == one
        place[here] = np.arange(here.sum())
    members = memberships(truth[:, half == 0]), memberships(truth[:, half == 1])
    return Halves(half.astype(np.int8), place, members)


def family_rows(reading: Reading, labels: Labels) -> list[FamilyRow]:
    """Score every reader for every family.

    Args:
        reading: the text and what was seen on it.
        labels: which tokens belong to which family.

    Returns:
        One a family, in the order of `labels`.
    """
    text = reading.text
    sizes = np.diff(text.starts)
    half = np.repeat(text.documents["half"].to_numpy(), sizes)
    document = np.repeat(np.arange(len(sizes)), sizes)
    counts = [labels.truth[:, half == one].sum(axis=1) for one in (0, 1)]
    others = [(half == one).sum() - counts[one] for one in (0, 1)]
    enough = np.flatnonzero(np.min([*counts, *others], axis=0) >= MIN_POSITIVES)
    halves = halves_of(half, labels.truth[enough])
    found = {units.name: best_units(units, halves) for units in reading.units}
    found[TOKENS] = token_scores(text.token_ids, halves)
    column = {int(family): at for at, family in enumerate(enough)}
    return [
        FamilyRow(
            family,
            int(counts[0][at]),
            int(counts[1][at]),
            len(np.unique(document[labels.truth[at] & (half == 1)])),
            {name: scores[column[at]] for name, scores in found.items() if at in column},
        )
        for at, family in enumerate(labels.families)
    ]


def best_units(units: Units, halves: Halves) -> list[UnitScore]:
    """Choose each family's unit on the first half and score it on the second.

    Args:
        units: of one dictionary, or the neurons.
        halves: the tokens.

    Returns:
        One a family.
    """
    shape = (units.n_units, len(halves.members[0].n_positive))
    f1, threshold, auc = np.zeros(shape), np.zeros(shape), np.full(shape, 0.5)
    for unit in range(units.n_units):
        part = halves.part(units.firings(unit), 0)
        if len(part.rows):
            f1[unit], threshold[unit], auc[unit] = curves(part, halves.members[0])
    by_f1, by_auc = f1.argmax(axis=0).tolist(), np.nan_to_num(auc).argmax(axis=0).tolist()
    second = {unit: halves.part(units.firings(unit), 1) for unit in sorted({*by_f1, *by_auc})}
    aucs = {unit: curves(second[unit], halves.members[1]).auc for unit in sorted(set(by_auc))}
    found = []
    for family, (unit, other) in enumerate(zip(by_f1, by_auc, strict=True)):
        cut, reached = float(threshold[unit, family]), float(f1[unit, family])
        now = _second(second[unit], cut, halves.members[1].row(family))
        found.append(UnitScore(unit, cut, _kept(reached), *now, other, _kept(aucs[other][family])))
    return found


def token_scores(token_ids: NDArray[np.int64], halves: Halves) -> list[UnitScore]:
    """Find each family's best set of tokens on the first half and score it on the second.

    Args:
        token_ids: (n_tokens,) vocabulary ids.
        halves: the tokens.

    Returns:
        One a family, without units.
    """
    d_vocab = int(token_ids.max(initial=0)) + 1
    ids = [token_ids[halves.half == half] for half in (0, 1)]
    n_seen = np.maximum(np.bincount(ids[0], minlength=d_vocab), 1)
    found = []
    for family in range(len(halves.members[0].n_positive)):
        weights = halves.members[0].row(family)
        share = np.bincount(ids[0], weights=weights, minlength=d_vocab) / n_seen
        parts = [_above_zero(share[one]) for one in ids]
        first, second = (
            curves(part, members) for part, members in zip(parts, halves.members, strict=True)
        )
        cut, reached = float(first.threshold[family]), float(first.f1[family])
        now = _second(parts[1], cut, halves.members[1].row(family))
        found.append(UnitScore(None, cut, _kept(reached), *now, None, _kept(second.auc[family])))
    return found


def _above_zero(acts: NDArray[np.float64]) -> Firings:
    rows = np.flatnonzero(acts > 0)
    return Firings(rows, acts[rows])


def _second(
    firings: Firings, threshold: float, truth: NDArray[np.bool_]
) -> tuple[float, float, float, float]:
    """Give F1, precision and recall of a threshold, and the F1 of threshold 0, on the second half."""
    f1, precision, recall = (_kept(value) for value in told(firings, threshold, truth))
    return f1, precision, recall, _kept(told(firings, 0, truth).f1)


def _kept(value: float) -> float:
    return round(float(value), DIGITS)
