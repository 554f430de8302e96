"""What an automaton expects next: probabilities over the vocabulary, smoothed as in its scores."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from drawn import html_system, large, loop
from hypothesis import given, settings
from random_automata import D_VOCAB, automata
from tagged import tagged_run, tags

from circuits.automaton import EXIT, EdgeToken, FeatureAutomaton, Transition
from circuits.emission import next_tokens
from circuits.fidelity import training_scores
from circuits.states import state_sequence, steps_of
from sae_core.errors import GraphError

if TYPE_CHECKING:
    from pathlib import Path

    from circuits import Run

COUNTS = np.array([5, 40, 0, 3, 2, 0])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tagged_run(tmp_path)


def naive(rows: list[list[float]], text: list[float]) -> np.ndarray:
    """Give P(token | state) of whole counts, a loop a step of the module's text."""
    pooled = [sum(row[v] for row in rows) for v in range(len(text))] if len(rows) > 1 else text
    base = [(n + 0.5) / sum(m + 0.5 for m in pooled) for n in pooled]
    return np.array(
        [[(n + 50 * b) / (sum(row) + 50) for n, b in zip(row, base, strict=True)] for row in rows]
    )


def test_fully_listed_arrows_are_smoothed_by_the_spans_unigram() -> None:
    # tokens: < a > x \n <a
    rows = [[25, 75, 0, 0, 0, 0], [40, 0, 32, 8, 0, 0], [0, 0, 10, 0, 0, 0]]
    found = np.array([next_tokens(tags(), state, COUNTS) for state in (2, 5, 9)])
    assert found == pytest.approx(naive(rows, COUNTS.tolist()))


def test_a_single_state_is_smoothed_by_the_whole_text() -> None:
    steps = (
        Transition(7, 7, 0.9, (EdgeToken(1, "a", 1.0),), "a", 90),
        Transition(7, EXIT, 0.1, (EdgeToken(0, "<", 1.0),), "<", 10),
    )
    found = next_tokens(replace(loop(), transitions=steps), 7, COUNTS)
    assert found == pytest.approx(naive([[10, 90, 0, 0, 0, 0]], COUNTS.tolist())[0])


def test_steps_on_tokens_not_listed_fall_on_the_others_as_the_text_has_them() -> None:
    steps = (Transition(7, 7, 1.0, (EdgeToken(1, "a", 0.6),), "a", 1_000_000),)
    found = next_tokens(replace(loop(), transitions=steps), 7, np.array([300, 9999, 100]))
    assert found == pytest.approx([0.3, 0.6, 0.1], abs=2e-3)


def test_a_state_never_counted_has_the_unigram() -> None:
    steps = tuple(replace(step, n_pairs=0) for step in tags().transitions)
    found = next_tokens(replace(tags(), transitions=steps), 2, COUNTS)
    assert found == pytest.approx(np.full(6, 1 / 6))  # of spans without a step
    assert next_tokens(replace(loop(), transitions=()), 7, COUNTS) == pytest.approx(
        (COUNTS + 0.5) / (COUNTS.sum() + 3)
    )


@given(automata())
@settings(deadline=None)
def test_every_state_of_any_automaton_has_probabilities_that_sum_to_1(
    automaton: FeatureAutomaton,
) -> None:
    counts = np.arange(D_VOCAB) % 3
    for state in automaton.states:
        found = next_tokens(automaton, state.id, counts)
        assert found.shape == (D_VOCAB,)
        assert found.min() > 0
        assert found.sum() == pytest.approx(1.0, abs=1e-12)


def test_bits_saved_are_those_of_the_probabilities(run: Run) -> None:
    """The score of an automaton is what its probabilities save over its spans' unigram."""
    tokens, means = run.tokens(), np.ones(7)
    groups = [state.features for state in tags().states]
    sequence = state_sequence(tokens, groups, means)
    steps = steps_of(tokens, sequence)
    counts = {}
    for source, target, token in zip(steps.source, steps.target, steps.token, strict=True):
        key = (int(source), int(target), int(token))
        counts[key] = counts.get(key, 0) + 1
    totals = np.bincount(steps.source, minlength=3)
    ids = [state.id for state in tags().states]
    arrows = tuple(
        Transition(
            ids[source],
            ids[target] if target >= 0 else EXIT,
            n / totals[source],
            (EdgeToken(token, "", 1.0),),
            "",
            n,
        )
        for (source, target, token), n in counts.items()
    )
    automaton = replace(tags(), transitions=arrows)
    d_vocab = 1 + int(tokens.token_ids.max())  # tokens beyond that are no part of the score
    base = np.bincount(steps.token, minlength=d_vocab) + 0.5
    saved = [
        np.log2(next_tokens(automaton, ids[source], np.zeros(d_vocab))[token])
        - np.log2(base[token] / base.sum())
        for source, token in zip(steps.source, steps.token, strict=True)
    ]
    scores = training_scores(tokens, sequence, steps, 3)
    assert scores.bits_saved > 0.01
    assert np.mean(saved) == pytest.approx(scores.bits_saved)


def test_an_automaton_of_a_run_knows_its_vocabulary(run: Run) -> None:
    (automaton,) = run.automata
    found = automaton.next_tokens(2)
    assert found.shape == (len(run.vocabulary),)
    assert found == pytest.approx(next_tokens(tags(), 2, run.statistics.token_counts))
    assert tags().next_tokens(2, run=run) == pytest.approx(found)
    assert automaton.zoom(1).next_tokens(2).sum() == pytest.approx(1.0)


def test_what_a_reader_gets_wrong_is_said(run: Run) -> None:
    with pytest.raises(GraphError, match="has no state 3; its states are 2, 5, 9"):
        tags().next_tokens(3, run=run)
    with pytest.raises(GraphError, match="system-tags belongs to no run; take it from"):
        tags().next_tokens(2)
    with pytest.raises(GraphError, match="html-tags has token 11, but the vocabulary has 6"):
        html_system().next_tokens(0, run=run)
    assert large(3, 9).next_tokens(0, run=run).sum() == pytest.approx(1.0)
