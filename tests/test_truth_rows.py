"""Scores and intervals of readers equal those of a plain loop over the drawn packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from circuits.truth_rows import (
    BOOTSTRAP_SEED,
    N_RESAMPLES,
    TruthTables,
    accuracy_of,
    count_table,
    f1_of,
    macro_f1_of,
    rows_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tokens = list[tuple[int, int]]


def naive_macro_f1(tokens: Tokens) -> float:
    f1s = []
    for label in {truth for truth, _ in tokens}:
        right = sum(1 for truth, told in tokens if truth == told == label)
        found = sum(1 for truth, _ in tokens if truth == label)
        claimed = sum(1 for _, told in tokens if told == label)
        f1s.append(2 * right / (found + claimed))
    return sum(f1s) / len(f1s)


def naive_accuracy(tokens: Tokens) -> float:
    return sum(truth == told for truth, told in tokens) / len(tokens)


def readers(seed: int) -> tuple[NDArray[np.int64], NDArray[np.uint8], dict[str, NDArray[np.uint8]]]:
    rng = np.random.default_rng(seed)
    units = rng.integers(5, size=120)
    truth = rng.integers(3, size=120).astype(np.uint8)
    told = {
        what: np.where(rng.random(120) < share, truth, rng.integers(4, size=120)).astype(np.uint8)
        for what, share in (("features", 0.8), ("token", 0.5))
    }
    return units, truth, told


def tables_of(seed: int) -> TruthTables:
    units, truth, told = readers(seed)
    tables = {
        what: count_table(truth, one, units, n_units=5, n_labels=4) for what, one in told.items()
    }
    return TruthTables(tuple(range(5)), are_packages=True, tables=tables)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_and_intervals_are_those_of_drawn_packages(seed: int) -> None:
    units, truth, told = readers(seed)
    by_unit = {
        what: [
            [(int(a), int(b)) for a, b, u in zip(truth, one, units, strict=True) if u == unit]
            for unit in range(5)
        ]
        for what, one in told.items()
    }
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    draws = [rng.integers(5, size=5).tolist() for _ in range(N_RESAMPLES)]
    drawn = {
        what: [[pair for unit in draw for pair in parts[unit]] for draw in draws]
        for what, parts in by_unit.items()
    }
    features, token = rows_of(tables_of(seed))
    for row in (features, token):
        whole = [pair for part in by_unit[row.what] for pair in part]
        assert row.accuracy == pytest.approx(naive_accuracy(whole))
        assert row.macro_f1 == pytest.approx(naive_macro_f1(whole))
        ends = np.percentile([naive_accuracy(one) for one in drawn[row.what]], [2.5, 97.5])
        assert [row.low, row.high] == pytest.approx(ends.tolist())
        ends = np.percentile([naive_macro_f1(one) for one in drawn[row.what]], [2.5, 97.5])
        assert [row.macro_f1_low, row.macro_f1_high] == pytest.approx(ends.tolist())
    pairs = zip(drawn["features"], drawn["token"], strict=True)
    ends = np.percentile([naive_accuracy(a) - naive_accuracy(b) for a, b in pairs], [2.5, 97.5])
    assert [token.difference_low, token.difference_high] == pytest.approx(ends.tolist())
    assert token.difference == pytest.approx(features.accuracy - token.accuracy)


def test_the_features_are_not_compared_with_themselves() -> None:
    features = rows_of(tables_of(0))[0]
    assert features.difference is features.difference_low is features.difference_high is None


def test_any_reader_can_be_the_one_that_others_are_compared_with() -> None:
    features, token = rows_of(tables_of(0))
    other, itself = rows_of(tables_of(0), against="token")
    assert itself.difference is None
    assert other.difference == pytest.approx(token.accuracy - features.accuracy)
    assert other.accuracy == features.accuracy


def test_a_reader_that_is_always_behind_by_as_much_has_a_narrow_difference() -> None:
    # Packages differ widely, the two readers by 0.1 in each of them.
    right = np.array([[90, 50], [80, 40]])
    tables = {
        what: np.array([[[n, 100 - n], [0, 0]] for n in one])
        for what, one in zip(("features", "token"), right, strict=True)
    }
    row = rows_of(TruthTables((0, 1), are_packages=True, tables=tables))[1]
    assert (row.low, row.high) == (0.4, 0.8)
    found = [row.difference, row.difference_low, row.difference_high]
    assert found == pytest.approx([0.1, 0.1, 0.1])


def test_a_label_that_never_occurs_has_no_f1_and_no_part_in_the_mean() -> None:
    table = np.array([[2, 0, 2], [0, 4, 0], [0, 0, 0]])
    assert f1_of(table)[:2].tolist() == pytest.approx([2 / 3, 1.0])
    assert np.isnan(f1_of(table)[2])
    assert float(macro_f1_of(table)) == pytest.approx(5 / 6)
    assert float(accuracy_of(table)) == 0.75
