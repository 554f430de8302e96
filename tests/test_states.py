"""States of tokens, the steps between them and the order in which they merge."""

from __future__ import annotations

import naive
import numpy as np
import pytest

from circuits.states import (
    STATE_THRESHOLD,
    has_next,
    information_bits,
    membership,
    merge_order,
    merged_groups,
    outcome_table,
    state_sequence,
    steps_of,
    transition_matrix,
)
from sae_core.schema import TokenTable

# Ten tokens: two windows of document 0, one of document 1. State 0 is features 0 and 1, state 1
# is feature 2; feature 3 belongs to none. Every mean activation is 2.
#  p        0     1     2     3        4     5     6     7     8     9
#  doc      0     0     0     0        0     0     1     1     1     1
#  window   0     0     0     0        1     1     2     2     2     2
#  token    5     6     7     5        6     5     5     6     6     7
#  fires    0:2   2:2   3:9   0+2:1.5  0:.4  2:4   1:2   0:1.3  2:1.5 -
#  score 0  1     .     .     .75      .2    .     1     .65   .     .
#  score 1  .     1     .     .75      .     2     .     .     .75   .
#  state    0     1     -     0 (tie)  -     1     0     -     1     -
TOKENS = TokenTable(
    doc_ids=np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1], np.uint32),
    window_ids=np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2], np.uint32),
    pos=np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3], np.uint32),
    token_ids=np.array([5, 6, 7, 5, 6, 5, 5, 6, 6, 7], np.uint32),
    byte_start=np.arange(10),
    byte_end=np.arange(10) + 1,
    indptr=np.array([0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 10]),
    features=np.array([0, 2, 3, 0, 2, 0, 2, 1, 0, 2], np.uint32),
    acts=np.array([2, 2, 9, 1.5, 1.5, 0.4, 4, 2, 1.3, 1.5], np.float32),
    promotions=np.zeros(10, np.float32),
)
GROUPS = [(0, 1), (2,)]
MEANS = np.full(4, 2.0)
STATES = [0, 1, -1, 0, -1, 1, 0, -1, 1, -1]


def test_the_state_of_a_token_is_the_strongest_above_the_threshold() -> None:
    assert STATE_THRESHOLD == 0.7  # row 7 is just below it, and outside
    assert state_sequence(TOKENS, GROUPS, MEANS).tolist() == STATES


def test_a_feature_that_never_fires_in_the_mean_counts_nothing() -> None:
    means = np.array([0.0, 2, 2, 2])
    assert state_sequence(TOKENS, GROUPS, means).tolist() == [-1, 1, -1, 1, -1, 1, 0, -1, 1, -1]


def test_no_states_means_all_outside() -> None:
    assert state_sequence(TOKENS, [], MEANS).tolist() == [-1] * 10


def test_a_token_has_a_next_one_only_in_its_document_and_window() -> None:
    expected = [True, True, True, False, True, False, True, True, True, False]
    assert has_next(TOKENS).tolist() == expected


def test_the_last_token_of_all_has_no_next_one() -> None:
    one = naive.part(TOKENS, 0, 1)
    assert has_next(one).tolist() == [False]
    assert has_next(naive.part(TOKENS, 0, 0)).tolist() == []


def test_windows_of_the_same_number_in_two_documents_are_two_windows() -> None:
    same = TOKENS._replace(window_ids=np.zeros(10, np.uint32))
    assert np.flatnonzero(~has_next(same)).tolist() == [5, 9]


def test_steps_leave_a_state_and_say_token_and_next_state() -> None:
    steps = steps_of(TOKENS, np.array(STATES, np.int32))
    assert steps.rows.tolist() == [0, 1, 6, 8]  # 3 and 5 end a window
    assert steps.source.tolist() == [0, 1, 0, 1]
    assert steps.target.tolist() == [1, -1, -1, -1]
    assert steps.token.tolist() == [6, 7, 6, 7]


def test_the_last_column_of_the_matrix_is_exit() -> None:
    steps = steps_of(TOKENS, np.array(STATES, np.int32))
    assert transition_matrix(steps, 2).tolist() == [[0, 1, 1], [0, 0, 2]]


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_the_matrix_sum_to_the_visits_with_a_next_token(seed: int) -> None:
    tokens = naive.random_tokens(seed)
    states = state_sequence(tokens, [(0, 3), (1,), (2, 5)], np.ones(7))
    inside = [p for p in range(200) if naive.joined(tokens, p, 1)]
    expected = [sum(states[p] == state for p in inside) for state in range(3)]
    assert transition_matrix(steps_of(tokens, states), 3).sum(axis=1).tolist() == expected
    assert max(expected) > 0


def test_outcomes_are_pairs_of_token_and_next_state() -> None:
    counts, targets = outcome_table(steps_of(TOKENS, np.array(STATES, np.int32)), 2)
    # Outcomes by token, then target: (6, EXIT), (6, state 1), (7, EXIT).
    assert counts.tolist() == [[1, 1, 0], [0, 0, 2]]
    assert targets.tolist() == [-1, 1, -1]


def test_membership_gives_each_feature_its_state() -> None:
    assert membership([(4, 0), (2,)], 6).tolist() == [0, -1, 1, -1, 0, -1]


@pytest.mark.parametrize("seed", range(8))
def test_merges_equal_their_plain_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 30, (6, 9)) * (rng.random((6, 9)) < 0.6)
    found, expected = merge_order(counts), naive.merge_order(counts)
    assert [(merge.a, merge.b) for merge in found] == [(a, b) for a, b, _ in expected]
    np.testing.assert_allclose(
        [merge.loss_bits for merge in found], [loss for *_, loss in expected], atol=1e-9
    )


@pytest.mark.parametrize("seed", range(4))
def test_all_merges_together_lose_all_information(seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 9, (7, 5))
    lost = sum(merge.loss_bits for merge in merge_order(counts))
    assert lost == pytest.approx(information_bits(counts))
    assert lost > 0.05


def test_states_with_the_same_outcomes_merge_first_and_lose_nothing() -> None:
    first = merge_order(np.array([[8, 0, 1], [0, 5, 0], [16, 0, 2]]))[0]
    assert (first.a, first.b) == (0, 2)
    assert first.loss_bits == pytest.approx(0, abs=1e-12)


def test_ties_merge_the_lowest_states() -> None:
    order = merge_order(np.ones((4, 2), np.int64))
    assert [(merge.a, merge.b) for merge in order] == [(0, 1), (0, 2), (0, 3)]


def test_one_state_has_nothing_to_merge() -> None:
    assert merge_order(np.array([[1, 2]])) == []


def test_counts_of_nothing_lose_nothing() -> None:
    assert [merge.loss_bits for merge in merge_order(np.zeros((3, 2), np.int64))] == [0, 0]
    assert information_bits(np.zeros((3, 2), np.int64)) == 0


def test_information_of_a_perfect_code_is_its_entropy() -> None:
    assert information_bits(np.diag([5, 5, 5, 5])) == pytest.approx(2)
    assert information_bits(np.ones((4, 4), np.int64)) == 0


def test_groups_are_merged_until_enough_are_left() -> None:
    groups = [(3,), (1, 4), (0,)]
    order = merge_order(np.array([[8, 0], [0, 5], [16, 0]]))
    assert merged_groups(groups, order, 3) == [(3,), (1, 4), (0,)]
    assert merged_groups(groups, order, 2) == [(3, 0), (1, 4)]
    assert merged_groups(groups, order, 1) == [(3, 0, 1, 4)]
