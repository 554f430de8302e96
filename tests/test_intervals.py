"""Intervals over documents: known ones, and what holds of all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.intervals import MAX_UNITS, interval

ROWS = st.lists(
    st.tuples(st.integers(-90, 90), st.integers(1, 9), st.integers(1, 9), st.integers(9, 99)),
    min_size=2,
    max_size=30,
)


def test_documents_that_are_alike_leave_no_doubt() -> None:
    found = interval(np.array([[6.0, 3, 4, 16]] * 5))  # 2 bits a step, on a quarter of the tokens
    assert found == pytest.approx((0.5, 0.5, 0.5))


def test_one_document_has_no_interval() -> None:
    assert interval(np.array([[6.0, 3, 4, 16]])) == (0.5, None, None)


def test_what_is_in_one_of_many_documents_may_be_nothing() -> None:
    # Of 30 documents one tells all; it is not among those drawn in (29 / 30) ** 30 = 0.36 of draws.
    sums = np.array([[8.0, 4, 4, 8], *[[0, 0, 0, 8]] * 29])
    found = interval(sums)
    assert found.value == pytest.approx(2 / 60)
    assert found.low == 0
    # It is drawn three times or more in 0.08 of draws, four times or more in 0.02.
    assert (found.high or 0) in (pytest.approx(3 * 2 / 60), pytest.approx(4 * 2 / 60))


def test_text_without_a_step_saves_nothing() -> None:
    assert interval(np.array([[0.0, 0, 0, 9]] * 3)) == (0, 0, 0)


@pytest.mark.parametrize("n", [MAX_UNITS - 1, MAX_UNITS, MAX_UNITS + 1, 3 * MAX_UNITS + 7])
def test_any_number_of_documents_has_the_interval_that_theory_gives(n: int) -> None:
    # Bits saved are 0 or 1 a document, half each: their mean has a standard error of 0.5 / sqrt(n).
    bits = (np.random.default_rng(n).permutation(n) % 2).astype(float)
    found = interval(np.stack([bits, *np.ones((3, n))], axis=1))
    error = 0.5 / np.sqrt(n)
    assert found.value == pytest.approx(0.5, abs=1 / n)
    assert (found.low or 0) == pytest.approx(found.value - 1.96 * error, abs=0.25 * error)
    assert (found.high or 0) == pytest.approx(found.value + 1.96 * error, abs=0.25 * error)


@settings(deadline=None)
@given(ROWS)
def test_an_interval_lies_between_the_least_and_the_most_a_document_gives(
    rows: list[tuple],
) -> None:
    sums = np.array(rows, dtype=float)
    found = interval(sums)
    assert interval(sums) == found
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.high
    rates = sums[:, 0] / sums[:, 1]
    shares = sums[:, 2] / sums[:, 3]
    ends = [
        rate * share
        for rate in (rates.min(), rates.max())
        for share in (shares.min(), shares.max())
    ]
    assert min(ends) - 1e-9 <= found.low
    assert found.high <= max(ends) + 1e-9


@settings(deadline=None)
@given(ROWS, st.integers(2, 5))
def test_more_text_of_each_document_changes_nothing(rows: list[tuple], times: int) -> None:
    sums = np.array(rows, dtype=float)
    assert interval(times * sums) == pytest.approx(interval(sums), abs=1e-9)
