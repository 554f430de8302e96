"""States are merged where what comes next does not tell them apart, however rare they are."""

from __future__ import annotations

import numpy as np
import pytest

from circuits.assemble import apart
from circuits.propose import Proposal
from circuits.shape import Text, _told, shape
from circuits.states import information_bits
from sae_core.schema import TokenTable


def test_outcomes_tell_nothing_of_twins_and_all_of_strangers() -> None:
    assert _told(np.array([[600, 600], [200, 200]])) == pytest.approx(0.0, abs=1e-3)
    assert _told(np.array([[6000, 0], [0, 2000]])) == pytest.approx(1.0, abs=1e-3)


def test_how_much_is_told_is_the_information_of_the_two_over_their_entropy() -> None:
    pair = np.array([[30, 5, 1], [500, 0, 500]]) * 1000
    share = pair.sum(axis=1) / pair.sum()
    expected = information_bits(pair) / -(share * np.log2(share)).sum()
    assert 0 < expected < 1
    assert _told(pair) == pytest.approx(expected, abs=1e-4)


def test_what_few_steps_of_twins_tell_by_chance_is_not_counted() -> None:
    rng = np.random.default_rng(0)
    pairs = [rng.multinomial(30, np.full(20, 0.05), size=2) for _ in range(500)]
    told = np.array([_told(pair) for pair in pairs])
    raw = np.array([information_bits(pair) for pair in pairs])  # over 1 bit, the entropy of which
    assert raw.mean() > 0.15
    assert told.mean() < raw.mean() / 3


def test_a_loop_is_told_from_the_rest_by_the_tokens_that_follow() -> None:
    text = ring([0, 0, 0, 1, 1, 1], 50)
    inside = np.where(text.tokens.token_ids == 0, 0, -1).astype(np.int32)
    # Of the 150 tokens that follow 0, 100 are 0; of the 149 that follow 1, 100 are 1.
    share = np.array([[100, 50], [49, 100]]) / [[150], [149]]
    middle = share.mean(axis=0)
    assert apart(text.tokens, inside) == pytest.approx((share * np.log2(share / middle)).sum() / 2)
    first_half = np.where(np.arange(300) < 150, 0, -1).astype(np.int32)
    assert apart(text.tokens, first_half) < 0.001


def ring(order: list[int], n_rounds: int) -> Text:
    """Give features that fire one after another, each on a token of its own."""
    features = np.array(order * n_rounds, np.uint32)
    n = len(features)
    at = np.arange(n)
    table = TokenTable(
        doc_ids=np.zeros(n, np.uint32),
        window_ids=np.zeros(n, np.uint32),
        pos=at.astype(np.uint32),
        token_ids=features,
        byte_start=at,
        byte_end=at + 1,
        indptr=np.arange(n + 1),
        features=features,
        acts=np.ones(n, np.float32),
        promotions=np.zeros(n, np.float32),
    )
    return Text(table, np.ones(max(order) + 1), [str(k) for k in range(max(order) + 1)])


def test_a_rare_state_is_kept_and_one_that_is_split_is_merged() -> None:
    # 1 and 2 take turns in one place of the ring. Once in eight rounds 4 and 5 come before 0: 5 leads
    # where 3 leads, 4 leads where nothing else does.
    rounds = [[0, k % 2 + 1, 3] for k in range(8)]
    rounds[5] += [4, 5]
    text = ring([feature for one in rounds for feature in one], 100)
    found = shape(Proposal(tuple((k,) for k in range(6)), "system"), text)
    assert found == [(0,), (1, 2), (3, 5), (4,)]
