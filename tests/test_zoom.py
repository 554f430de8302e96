"""Fewer states, merged where that loses least, and still an automaton."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawn import hostile, html_system, large, loop
from hypothesis import given, settings
from random_automata import automata

from circuits.automaton import EXIT, EdgeToken, Example, FeatureAutomaton, State, Transition
from circuits.states import information_bits
from circuits.zoom import outcome_counts, zoom
from sae_core.errors import GraphError


def example(token: str) -> Example:
    return Example((token, "x"), (1.0, 0.0), 0)


def arrow(
    source: int, target: int | None, n_pairs: int, *tokens: tuple[int, str, float]
) -> Transition:
    shares = tuple(EdgeToken(*token) for token in tokens)
    end = EXIT if target is None else target
    label = "  ".join(text for _, text, _ in tokens)
    return Transition(source, end, 0.0, shares, label, n_pairs, causal=0.5)


def twins() -> FeatureAutomaton:
    """Give an automaton whose states 1 and 2 do the same; 3 does something else.

    0 leads to 1 on a, 60 times, and to 2 on b, 40; 1 and 2 to 3 on c, 30 and 20, and out on d,
    as often; 3 back to 0 on e, 50.
    """
    steps = (
        arrow(0, 1, 60, (10, "a", 1.0)),
        arrow(0, 2, 40, (11, "b", 1.0)),
        arrow(1, 3, 30, (12, "c", 1.0)),
        arrow(1, None, 30, (13, "d", 1.0)),
        arrow(2, 3, 20, (12, "c", 1.0)),
        arrow(2, None, 20, (13, "d", 1.0)),
        arrow(3, 0, 50, (14, "e", 1.0)),
    )
    totals = {0: 100, 1: 60, 2: 40, 3: 50}
    steps = tuple(replace(s, probability=s.n_pairs / totals[s.source]) for s in steps)
    states = (
        State(0, "e", (5,), (example("e"),)),
        State(1, "a", (7, 2), (example("a"), example("a"))),
        State(2, "b", (9,), (example("b"),)),
        State(3, "c", (4,), (example("c"),)),
    )
    return FeatureAutomaton("twins", "Twins", "system", {"rank": 3}, states, steps, {"run": "r"})


def row_sums(automaton: FeatureAutomaton) -> list[float]:
    return [
        sum(step.probability for step in automaton.leaving(state.id)) for state in automaton.states
    ]


def test_states_that_do_the_same_merge_first() -> None:
    merged = zoom(twins(), 3)
    assert [state.id for state in merged.states] == [0, 1, 3]
    assert merged.state(1).features == (7, 2, 9)  # the busier one's first
    assert merged.state(1).label == "a  b"  # the tokens that lead there
    assert [one.tokens[0] for one in merged.state(1).examples] == ["a", "b"]


def test_arrows_of_merged_states_add_up() -> None:
    found = {(s.source, s.target): s for s in zoom(twins(), 3).transitions}
    assert {key: step.n_pairs for key, step in found.items()} == {
        (0, 1): 100,
        (1, 3): 50,
        (1, EXIT): 50,
        (3, 0): 50,
    }
    into = found[0, 1]
    assert into.probability == 1.0
    assert into.tokens == (EdgeToken(10, "a", 0.6), EdgeToken(11, "b", 0.4))
    assert into.label == "a  b"
    assert into.causal == 0.5
    assert found[1, 3].probability == 0.5
    assert found[1, 3].tokens == (EdgeToken(12, "c", 1.0),)


def test_an_effect_not_measured_everywhere_is_not_given() -> None:
    automaton = twins()
    first = replace(automaton.transitions[0], causal=None)
    merged = zoom(replace(automaton, transitions=(first, *automaton.transitions[1:])), 3)
    assert next(s for s in merged.transitions if s.target == 1).causal is None


def test_untouched_states_stay_as_they_are() -> None:
    assert zoom(twins(), 3).state(3) == twins().state(3)


def test_name_title_kind_and_scores_stay() -> None:
    merged = zoom(twins(), 2)
    for name in ("name", "title", "kind", "scores"):
        assert getattr(merged, name) == getattr(twins(), name)
    assert merged.provenance == {"run": "r", "zoomed_from": 4}


def test_all_states_give_the_automaton_itself() -> None:
    automaton = twins()
    assert zoom(automaton, 4) is automaton
    assert zoom(loop(), 1) == loop()


def test_one_state_keeps_every_pair_and_loops() -> None:
    merged = zoom(twins(), 1)
    assert [(s.source, s.target, s.n_pairs) for s in merged.transitions] == [
        (0, 0, 200),
        (0, EXIT, 50),
    ]
    assert merged.states[0].features == (5, 7, 2, 4, 9)


@pytest.mark.parametrize("make", [twins, html_system, hostile, lambda: large(30, 200)])
def test_every_level_is_an_automaton_whose_rows_sum_to_1(make: type[FeatureAutomaton]) -> None:
    automaton = make()
    stored = len(automaton.states)
    n_pairs = sum(step.n_pairs for step in automaton.transitions)
    for n in range(1, stored):
        merged = zoom(automaton, n)
        assert len(merged.states) == n
        assert FeatureAutomaton.from_json(merged.to_json()) == merged
        assert sum(step.n_pairs for step in merged.transitions) == n_pairs
        assert merged.features == automaton.features
        counted = {s.source for s in merged.transitions if s.n_pairs}
        sums = dict(zip((s.id for s in merged.states), row_sums(merged), strict=True))
        assert [sums[state] for state in counted] == pytest.approx([1.0] * len(counted))


@given(automata())
@settings(deadline=None)
def test_at_every_level_the_rows_of_any_automaton_sum_to_1(automaton: FeatureAutomaton) -> None:
    for n in range(1, len(automaton.states) + 1):
        merged = zoom(automaton, n)
        assert len(merged.states) == n
        assert row_sums(merged) == pytest.approx([1.0] * n, abs=1e-9)
        assert FeatureAutomaton.from_json(merged.to_json()) == merged


@given(automata())
@settings(deadline=None)
def test_the_costs_of_the_merges_add_up_to_the_information(automaton: FeatureAutomaton) -> None:
    counts = outcome_counts(automaton)
    rows = {state.id: counts[at] for at, state in enumerate(automaton.states)}
    whole = information_bits(counts)
    lost = 0.0
    for merge in automaton.merge_tree():
        assert merge.a < merge.b
        assert merge.loss_bits >= 0
        rows[merge.a] = rows[merge.a] + rows.pop(merge.b)
        lost += merge.loss_bits
        assert information_bits(np.array(list(rows.values()))) == pytest.approx(
            whole - lost, abs=1e-9
        )
        assert {state.id for state in automaton.zoom(len(rows)).states} == set(rows)
    assert lost == pytest.approx(whole, abs=1e-9)


def test_zooming_out_further_is_zooming_out_of_the_result() -> None:
    assert zoom(zoom(twins(), 3), 2).transitions == zoom(twins(), 2).transitions


def test_equal_automata_zoom_to_equal_text() -> None:
    assert zoom(html_system(), 2).to_json() == zoom(html_system(), 2).to_json()


def test_the_first_merge_loses_least_of_all_pairs() -> None:
    automaton = html_system()
    counts = outcome_counts(automaton)
    losses = {}
    for a in range(4):
        for b in range(a + 1, 4):
            rest = [row for at, row in enumerate(counts) if at not in (a, b)]
            joined = np.array([*rest, counts[a] + counts[b]])
            losses[a, b] = information_bits(counts) - information_bits(joined)
    a, b = min(losses, key=lambda pair: losses[pair])
    members = {*automaton.state(a).features, *automaton.state(b).features}
    assert members in [set(state.features) for state in zoom(automaton, 3).states]


def test_tokens_that_an_arrow_does_not_list_are_one_more_outcome() -> None:
    steps = (arrow(0, 0, 10, (5, "a", 0.7)), arrow(0, None, 4))
    automaton = replace(loop(), states=(State(0, "a", (1,)),), transitions=steps)
    assert outcome_counts(automaton).tolist() == [[7, 3, 4]]


def test_arrows_without_counts_are_weighed_alike() -> None:
    steps = tuple(replace(step, n_pairs=0) for step in twins().transitions)
    merged = zoom(replace(twins(), transitions=steps), 1)
    assert row_sums(merged) == pytest.approx([1.0])


def test_more_states_than_stored_are_refused() -> None:
    with pytest.raises(GraphError, match=r"twins is stored with 4 states.*5; choose 1 to 4"):
        zoom(twins(), 5)


@pytest.mark.parametrize("n", [0, -1])
def test_fewer_than_one_state_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n_states must be >= 1, got {n}"):
        zoom(twins(), n)


def test_an_automaton_zooms_itself() -> None:
    assert twins().zoom(2) == zoom(twins(), 2)


def test_what_would_take_minutes_to_merge_is_refused_by_both_ways(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("circuits.zoom.MAX_WORK", 4**2 * 5 - 1)
    for merge in (lambda: zoom(twins(), 2), twins().merge_tree):
        with pytest.raises(
            GraphError, match=r"twins has 4 states and 5 targets, too many to merge"
        ):
            merge()
    monkeypatch.setattr("circuits.zoom.MAX_WORK", 4**2 * 5)
    assert len(zoom(twins(), 2).states) == 2
