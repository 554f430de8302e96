"""Modified Kneser-Ney: equal to a dictionary-based twin, and a distribution in every context."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core.ngrams import FALLBACK_DISCOUNTS, discounts, train_ngrams

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = (0, 1, 2, 3)
Gram = tuple[int, ...]


class NaiveKneserNey:
    """Chen & Goodman 1998, equations 21 to 27, written down with dictionaries and recursion."""

    def __init__(self, documents: list[list[int]], order: int, d_vocab: int) -> None:
        self.order = order
        self.d_vocab = d_vocab
        raw = {n: Counter(ngrams(documents, n)) for n in range(1, order + 1)}
        self.counts: dict[int, dict[Gram, int]] = {order: dict(raw[order])}
        for n in range(order - 1, 0, -1):
            left: dict[Gram, set[int]] = defaultdict(set)
            for gram in raw[n + 1]:
                left[gram[1:]].add(gram[0])
            opening = {gram: count for gram, count in raw[n].items() if gram[0] == 0}
            self.counts[n] = {gram: len(before) for gram, before in left.items()} | opening
        self.discounts = {n: naive_discounts(self.counts[n]) for n in self.counts}

    def prob(self, context: Gram, word: int) -> float:
        """P(word | context), the context cut to what the order can use."""
        context = context[len(context) - min(len(context), self.order - 1) :]
        shorter = self.prob(context[1:], word) if context else 1 / (self.d_vocab - 1)
        n = len(context) + 1
        following = {
            gram[-1]: count for gram, count in self.counts[n].items() if gram[:-1] == context
        }
        if not following:
            return shorter
        take = self.discounts[n]
        total = sum(following.values())
        gamma = sum(take[min(count, 3)] for count in following.values()) / total
        count = following.get(word, 0)
        return (count - take[min(count, 3)]) / total + gamma * shorter

    def log_probs(self, documents: list[list[int]]) -> list[float]:
        return [
            math.log(self.prob(tuple(document[:at]), document[at])) if at else math.nan
            for document in documents
            for at in range(len(document))
        ]


def ngrams(documents: list[list[int]], n: int) -> list[Gram]:
    return [
        tuple(document[end - n : end])
        for document in documents
        for end in range(max(n, 2), len(document) + 1)
    ]


def naive_discounts(counts: dict[Gram, int]) -> dict[int, float]:
    n = Counter(counts.values())
    if n[1] and n[2] and n[3]:
        y = n[1] / (n[1] + 2 * n[2])
        found = {k: k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)}
        if min(found.values()) > 0:
            return {0: 0.0} | found
    return {0: 0.0} | dict(enumerate(FALLBACK_DISCOUNTS, start=1))


def random_documents(seed: int, *, d_vocab: int, n_tokens: int = 500) -> list[list[int]]:
    """Skewed tokens, so that seen and unseen, rare and frequent n-grams all occur."""
    rng = np.random.default_rng(seed)
    tokens = 1 + rng.zipf(1.6, n_tokens) % (d_vocab - 1)
    cuts = np.sort(rng.integers(0, n_tokens, 12))
    return [[0, *part.tolist()] for part in np.split(tokens, cuts)]


def stream(documents: list[list[int]]) -> np.ndarray:
    return np.array([token for document in documents for token in document], np.uint16)


documents_of_five_tokens = st.lists(
    st.lists(st.integers(1, 4), max_size=12).map(lambda part: [0, *part]), min_size=1, max_size=8
)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_log_probabilities_equal_those_of_the_plain_twin(seed: int, order: int) -> None:
    train = random_documents(seed, d_vocab=30)
    held_out = random_documents(seed + 100, d_vocab=30, n_tokens=150)
    expected = NaiveKneserNey(train, order, 30).log_probs(held_out)
    found = train_ngrams(stream(train), order=order, d_vocab=30).log_probs(stream(held_out))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.nanstd(found) > 0.1


def test_the_seeds_reach_both_the_estimated_and_the_fallback_discounts() -> None:
    models = [NaiveKneserNey(random_documents(seed, d_vocab=30), 3, 30) for seed in SEEDS]
    firsts = [model.discounts[n][1] for model in models for n in (1, 2, 3)]
    assert FALLBACK_DISCOUNTS[0] in firsts
    assert set(firsts) - {FALLBACK_DISCOUNTS[0]}


@given(train=documents_of_five_tokens, held_out=documents_of_five_tokens, order=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_any_small_stream_equals_the_plain_twin(
    train: list[list[int]], held_out: list[list[int]], order: int
) -> None:
    if all(len(document) == 1 for document in train):
        train = [*train, [0, 1]]
    expected = NaiveKneserNey(train, order, 5).log_probs(held_out)
    found = train_ngrams(stream(train), order=order, d_vocab=5).log_probs(stream(held_out))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@given(
    train=documents_of_five_tokens,
    context=st.lists(st.integers(1, 6), max_size=4),
    order=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_probabilities_sum_to_one_in_seen_and_unseen_contexts(
    train: list[list[int]], context: list[int], order: int
) -> None:
    model = train_ngrams(stream([*train, [0, 1]]), order=order, d_vocab=7)
    nexts = [[0, *context, word] for word in range(1, 7)]  # contexts with 5 and 6 are never seen
    ends = np.cumsum([len(document) for document in nexts]) - 1
    assert np.exp(model.log_probs(stream(nexts))[ends]).sum() == pytest.approx(1, abs=1e-12)


def test_probabilities_of_a_large_stream_sum_to_one_after_every_seen_context() -> None:
    documents = random_documents(7, d_vocab=20, n_tokens=3000)
    model = train_ngrams(stream(documents), order=3, d_vocab=20)
    contexts = sorted({gram[:2] for gram in ngrams(documents, 3)})
    assert len(contexts) > 50
    inner = [context for context in contexts if context[0] != 0]
    nexts = [[0, *context, word] for context in inner for word in range(1, 20)]
    logs = model.log_probs(stream(nexts)).reshape(-1, 4)[:, 3]
    np.testing.assert_allclose(np.exp(logs).reshape(-1, 19).sum(1), 1, rtol=1e-12)


def test_a_hand_counted_bigram_has_the_probability_written_beside_it() -> None:
    model = train_ngrams(np.array([0, 1, 2, 1, 2, 0, 1]), order=2, d_vocab=4)
    # Both orders fall back to discounts 0.5, 1, 1.5. Order 1 counts left contexts: token 1 has two
    # (0 and 2), token 2 has one; gamma = (1 + 0.5) / 3, so P(2) = 0.5 / 3 + 0.5 / 3 = 1/3.
    # 2 follows 1 twice of two times: (2 - 1) / 2 + 1 / 2 * P(2).
    assert np.exp(model.log_probs(np.array([0, 1, 2])))[2] == pytest.approx(0.5 + 0.5 / 3)


def test_no_context_reaches_across_a_document_start() -> None:
    model = train_ngrams(stream(random_documents(0, d_vocab=9)), order=3, d_vocab=9)
    alone = model.log_probs(np.array([0, 4, 2, 3]))
    after_others = model.log_probs(np.array([0, 8, 7, 0, 4, 2, 3]))
    np.testing.assert_array_equal(after_others[3:], alone)


def test_document_starts_are_not_predicted() -> None:
    model = train_ngrams(np.array([0, 1, 2, 0, 0, 2]), order=2, d_vocab=3)
    found = np.isnan(model.log_probs(np.array([0, 1, 0, 0, 2, 1])))
    assert found.tolist() == [True, False, True, True, False, False]


def test_a_longer_order_predicts_a_counting_sequence_better() -> None:
    rng = np.random.default_rng(0)
    documents = [[0, *(1 + (start + np.arange(50)) % 20)] for start in rng.integers(20, size=40)]
    losses = [
        -np.nanmean(
            train_ngrams(stream(documents), order=n, d_vocab=21).log_probs(stream(documents))
        )
        for n in (1, 2)
    ]
    assert losses[0] == pytest.approx(math.log(20), abs=0.01)
    assert losses[1] < 0.2


def test_training_does_not_change_the_stream_and_reads_a_file_mapped_into_memory(
    tmp_path: Path,
) -> None:
    ids = stream(random_documents(1, d_vocab=9))
    ids.tofile(tmp_path / "ids.bin")
    mapped = np.memmap(tmp_path / "ids.bin", np.uint16, "r")
    from_file = train_ngrams(mapped, order=3, d_vocab=9).log_probs(mapped)
    before = ids.copy()
    np.testing.assert_array_equal(train_ngrams(ids, order=3, d_vocab=9).log_probs(ids), from_file)
    np.testing.assert_array_equal(ids, before)


def test_discounts_follow_the_counts_of_counts() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 3])
    # Y = 8 / (8 + 8) = 1/2: D1 = 1 - 4/8, D2 = 2 - 1.5 * 2/4, D3 = 3 - 2 * 1/2
    assert discounts(counts).tolist() == [0.5, 1.25, 2.0]
    assert discounts(np.array([5, 7])).tolist() == list(FALLBACK_DISCOUNTS)


@pytest.mark.parametrize(
    ("ids", "order", "d_vocab", "sentence"),
    [
        ([1, 2], 2, 4, "must start with a document's id 0, got 1"),
        ([], 2, 4, "must start with a document's id 0, got nothing"),
        ([0, 4], 2, 4, r"token ids must be in 0\.\.3, got 0\.\.4"),
        ([0, 1], 0, 4, "order must be >= 1"),
        ([0, 1], 6, 4096, "got order 6 and d_vocab 4096"),
        ([0, 0], 2, 4, "no token to predict"),
    ],
)
def test_streams_and_orders_that_cannot_be_counted_are_refused(
    ids: list[int], order: int, d_vocab: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        train_ngrams(np.array(ids, np.int64), order=order, d_vocab=d_vocab)


def test_a_held_out_stream_beyond_the_vocabulary_is_refused() -> None:
    model = train_ngrams(np.array([0, 1, 2]), order=2, d_vocab=3)
    with pytest.raises(ValueError, match=r"token ids must be in 0\.\.2, got 0\.\.3"):
        model.log_probs(np.array([0, 3]))
