"""Scores of an automaton are what their names say, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from circuits.fidelity import (
    HELD_OUT,
    held_out_scores,
    next_token_chances,
    training_scores,
    unigram,
)
from circuits.states import Steps, state_sequence, steps_of
from sae_core.schema import TokenTable


def table(token_ids: list[int], fires: list[int | None], doc_ids: list[int]) -> TokenTable:
    """Make a stream in which at most one feature fires on a token, with activation 1."""
    n = len(token_ids)
    features = [feature for feature in fires if feature is not None]
    documents = np.array(doc_ids, np.uint32)
    return TokenTable(
        documents,
        documents,
        np.arange(n, dtype=np.uint32),
        np.array(token_ids, np.uint32),
        np.arange(n),
        np.arange(n) + 1,
        np.cumsum([0, *(feature is not None for feature in fires)]),
        np.array(features, np.uint32),
        np.ones(len(features), np.float32),
        np.zeros(len(features), np.float32),
    )


# Feature 0 fires on token 1, feature 1 on token 2; always 1 2 1 2, then 0 0 outside.
ROUND = [1, 2, 1, 2, 0, 0]
FIRES: list[int | None] = [0, 1, 0, 1, None, None]
GROUPS = [(0,), (1,)]
MEANS = np.ones(2)


def rounds(n: int) -> TokenTable:
    return table(ROUND * n, FIRES * n, [at // len(ROUND) for at in range(len(ROUND) * n)])


def scores_of(tokens: TokenTable) -> dict[str, float]:
    sequence = state_sequence(tokens, GROUPS, MEANS)
    return training_scores(tokens, sequence, steps_of(tokens, sequence), 2)._asdict()


def held_out(training: TokenTable, unseen: TokenTable | None) -> dict[str, float | None]:
    steps = steps_of(training, state_sequence(training, GROUPS, MEANS))
    return held_out_scores(GROUPS, steps, MEANS, unseen)


def test_retention_is_the_share_of_steps_that_stay_inside() -> None:
    found = scores_of(rounds(50))  # a round steps 1-2, 2-1, 1-2, 2-out
    assert found["retention"] == pytest.approx(3 / 4)
    assert found["coverage"] == pytest.approx(4 / 6)
    assert found["retention_lift"] == pytest.approx(3 / 4 / (4 / 6))


def test_a_state_that_tells_the_next_token_saves_bits() -> None:
    # Tokens after the four steps: 2 1 2 0, unigram 1/2 1/4 1/4. State 0 says 2: saves 1 bit.
    # State 1 says 1 or 0 at 1/2: saves 1 bit. Smoothing takes a part, less the more there is.
    few, many = scores_of(rounds(50))["bits_saved"], scores_of(rounds(1000))["bits_saved"]
    assert few < many < 1
    assert many == pytest.approx(1, abs=0.1)


def test_states_that_tell_nothing_save_nothing() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    tokens = table(
        rng.integers(0, 4, n).tolist(), [int(at) for at in rng.integers(0, 2, n)], [0] * n
    )
    assert scores_of(tokens)["bits_saved"] == pytest.approx(0, abs=0.02)


def test_held_out_scores_of_the_same_text_are_the_training_ones() -> None:
    tokens = rounds(50)
    training, found = scores_of(tokens), held_out(tokens, tokens)
    assert tuple(found) == HELD_OUT
    assert found["held_out_retention"] == pytest.approx(training["retention"])
    assert found["held_out_coverage"] == pytest.approx(training["coverage"])
    assert found["held_out_bits_saved"] == pytest.approx(training["bits_saved"])
    assert found["held_out_steps_explained"] == 1.0


def test_steps_explained_are_those_seen_in_training() -> None:
    # Unseen steps inside: 1-2 on 2 (seen), 2-2 on 2 (not seen).
    unseen = table([1, 2, 2, 0], [0, 1, 1, None], [0] * 4)
    assert held_out(rounds(50), unseen)["held_out_steps_explained"] == pytest.approx(1 / 2)


def test_tokens_never_seen_in_training_cost_bits_but_no_crash() -> None:
    unseen = table([1, 7, 1, 9], [0, 1, 0, 1], [0] * 4)
    bits = held_out(rounds(50), unseen)["held_out_bits_saved"]
    assert bits is not None
    assert np.isfinite(bits)
    assert bits < 0


@pytest.mark.parametrize("n", [None, 0])
def test_no_held_out_text_means_not_measured(n: int | None) -> None:
    unseen = None if n is None else table([], [], [])
    assert held_out(rounds(50), unseen) == dict.fromkeys(HELD_OUT)


def test_text_that_the_automaton_never_enters_has_coverage_0() -> None:
    found = held_out(rounds(50), table([0] * 9, [None] * 9, [0] * 9))
    assert found.pop("held_out_coverage") == 0.0
    assert set(found.values()) == {None}


def by_document(*documents: tuple[list[int], list[int | None]]) -> TokenTable:
    """Make a stream of documents, each tokens and what fires on them."""
    tokens = [token for ids, _ in documents for token in ids]
    fires = [feature for _, which in documents for feature in which]
    return table(tokens, fires, [at for at, (ids, _) in enumerate(documents) for _ in ids])


def test_bits_per_token_are_bits_saved_by_the_other_documents_times_coverage() -> None:
    # Each of 2 equal documents is read with the 399 steps of the other (its last token has no successor):
    # 200 from state 0, all on token 2, and 199 from state 1, all on token 1.
    tokens = by_document(*[(ROUND[:4] * 100, FIRES[:4] * 100)] * 2)
    found = scores_of(tokens)
    base = (np.array([0, 199, 200]) + 0.5) / (399 + 1.5)
    after_0 = np.log2((200 + 50 * base[2]) / (200 + 50) / base[2])
    after_1 = np.log2((199 + 50 * base[1]) / (199 + 50) / base[1])
    assert found["bits_per_token"] == pytest.approx((200 * after_0 + 199 * after_1) / 399)
    assert found["bits_per_token"] == pytest.approx(found["bits_saved"], abs=0.1)
    assert found["bits_per_token_low"] == pytest.approx(found["bits_per_token"])


def test_what_comes_in_one_document_only_saves_no_bits_for_sure() -> None:
    alone = by_document((ROUND * 100, FIRES * 100), *[([0] * 100, [None] * 100)] * 9)
    found = scores_of(alone)
    assert found["bits_saved"] > 0.5
    assert found["bits_per_token"] == pytest.approx(0, abs=1e-9)
    assert found["bits_per_token_low"] == pytest.approx(0, abs=1e-9)


def test_what_comes_in_every_document_saves_bits_for_sure() -> None:
    rounds_of = [(ROUND * n, FIRES * n) for n in (40, 50, 60, 70)]
    found = scores_of(by_document(*rounds_of))
    assert 0 < found["bits_per_token_low"] < found["bits_per_token"] < found["bits_per_token_high"]


def test_of_a_single_document_no_bits_per_token_are_measured() -> None:
    found = scores_of(table(ROUND * 50, FIRES * 50, [0] * 300))
    assert found["bits_saved"] > 0.5
    names = ("bits_per_token", "bits_per_token_low", "bits_per_token_high")
    assert [found[name] for name in names] == [None] * 3


def test_held_out_bits_per_token_are_held_out_bits_saved_times_coverage() -> None:
    unseen = by_document((ROUND * 20, FIRES * 20), (ROUND * 5 + [0] * 90, FIRES * 5 + [None] * 90))
    found = held_out(rounds(50), unseen)
    bits, coverage = found["held_out_bits_saved"], found["held_out_coverage"]
    assert found["held_out_bits_per_token"] == pytest.approx((bits or 0) * (coverage or 0))
    low, high = found["held_out_bits_per_token_low"], found["held_out_bits_per_token_high"]
    assert (low or 0) < (found["held_out_bits_per_token"] or 0) < (high or 0)


def test_one_held_out_document_has_no_interval() -> None:
    found = held_out(rounds(50), table(ROUND * 9, FIRES * 9, [0] * 54))
    assert found["held_out_bits_per_token"] is not None
    assert found["held_out_bits_per_token_low"] is None


def test_chances_of_a_state_are_its_smoothed_counts_and_sum_to_1() -> None:
    counted = Steps(
        np.arange(4), np.array([0, 0, 0, 1]), np.zeros(4, np.int32), np.array([1, 1, 2, 0])
    )
    asked = Steps(np.arange(3), np.zeros(3, np.int32), np.zeros(3, np.int32), np.arange(3))
    prior = np.array([0.5, 0.25, 0.25])
    chance, base = next_token_chances(counted, asked, 2, prior)
    assert base.tolist() == prior.tolist()
    assert chance == pytest.approx(np.array([25, 2 + 12.5, 1 + 12.5]) / 53)
    assert chance.sum() == pytest.approx(1)


def test_the_unigram_is_the_spans_or_for_one_state_the_texts() -> None:
    tokens = table([0, 0, 0, 1], [None, 0, None, None], [0] * 4)
    steps = steps_of(tokens, np.array([-1, -1, 0, -1], np.int32))
    assert unigram(tokens, steps, 2) == pytest.approx([0.25, 0.75])  # after the span: 1
    assert unigram(tokens, steps, 1) == pytest.approx([0.7, 0.3])
