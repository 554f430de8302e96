"""AALpy loads an automaton as a stochastic Mealy machine, and says the same of every string."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter, defaultdict
from dataclasses import replace
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
from aalpy.utils import load_automaton_from_file, mdp_2_prism_format
from drawn import HOSTILE, hostile, html_system, large, loop
from hypothesis import given, settings
from hypothesis import strategies as st
from random_automata import D_VOCAB, automata

from circuits.automaton import EXIT, FeatureAutomaton
from circuits.layout import LAYOUT_SECONDS, _embedded
from circuits.mealy import END, INPUT, OTHER, mealy_dot

if TYPE_CHECKING:
    from pathlib import Path


def loaded(automaton: FeatureAutomaton, folder: Path) -> Any:
    """Load the machine; AALpy prints what it finds amiss."""
    path = folder / "machine.dot"
    automaton.to_mealy(path)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        machine = load_automaton_from_file(path, "smm")
    assert said.getvalue() == ""
    return machine


def ours(automaton: FeatureAutomaton, text: list[str]) -> dict[str, float]:
    """Give the weight of all paths on a text by where they end, a loop over the arrows."""
    visited = Counter({state.id: 0 for state in automaton.states})
    for step in automaton.transitions:
        visited[step.source] += step.n_pairs
    start = min(visited, key=lambda at: (-visited[at], at))
    weights: dict[Any, float] = {start: 1.0}
    for symbol in text:
        following: dict[Any, float] = defaultdict(float)
        for here, weight in weights.items():
            if here == EXIT:
                following[EXIT] += weight * (symbol == END)
                continue
            steps = [step for step in automaton.transitions if step.source == here]
            for step in steps:
                listed = {f"t{token.token_id}": token.share for token in step.tokens}
                listed[OTHER] = 1 - sum(listed.values())
                following[step.target] += weight * step.probability * listed.get(symbol, 0.0)
            lacking = 1 - sum(step.probability for step in steps)
            following[EXIT] += weight * lacking * (symbol == OTHER)
        weights = {state: weight for state, weight in following.items() if weight > 1e-12}
    return {EXIT if at == EXIT else f"s{at}": weight for at, weight in weights.items()}


def theirs(machine: Any, text: list[str]) -> dict[str, float]:
    """Give the weight of all paths on a text in the loaded machine."""
    weights = {machine.initial_state: 1.0}
    for symbol in text:
        following: dict[Any, float] = defaultdict(float)
        for here, weight in weights.items():
            for target, output, chance in here.transitions[INPUT]:
                if output == symbol:
                    following[target] += weight * chance
        weights = dict(following)
    return {state.state_id: weight for state, weight in weights.items() if weight > 1e-12}


def paths(machine: Any, text: list[str]) -> bool:
    """Say whether the machine's own walk takes a text."""
    machine.reset_to_initial()
    return all(machine.step_to(INPUT, symbol) is not None for symbol in text)


texts = st.lists(st.sampled_from([*(f"t{at}" for at in range(D_VOCAB)), OTHER, END]), max_size=6)


@given(automata(), st.lists(texts, min_size=1, max_size=10), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_aalpy_agrees_on_the_weight_and_the_ends_of_any_string(
    tmp_path_factory: pytest.TempPathFactory,
    automaton: FeatureAutomaton,
    drawn: list[list[str]],
    random: Any,
) -> None:
    machine = loaded(automaton, tmp_path_factory.getbasetemp())
    for text in [*drawn, *(walked(machine, random) for _ in range(5))]:
        expected = ours(automaton, text)
        assert theirs(machine, text) == pytest.approx(expected, abs=1e-12)


def walked(machine: Any, random: Any) -> list[str]:
    """Draw a text that the machine takes."""
    here, text = machine.initial_state, []
    for _ in range(random.randint(1, 8)):
        here, symbol, _ = random.choice(here.transitions[INPUT])
        text.append(symbol)
    return text


def test_aalpy_accepts_the_strings_that_the_arrows_allow(tmp_path: Path) -> None:
    machine = loaded(html_system(), tmp_path)
    assert machine.initial_state.state_id == "s0"  # 1000 pairs; 1 has as many
    assert paths(machine, ["t10", "t10", "t10"])
    assert theirs(machine, ["t10"]) == pytest.approx({"s1": 0.91 * 0.6})
    assert paths(machine, ["t11"])
    assert not paths(machine, ["t12"])
    assert paths(machine, [OTHER, END, END])
    assert not paths(machine, [OTHER, "t10"])


@given(automata())
@settings(deadline=None)
def test_every_row_that_aalpy_reads_sums_to_1(
    tmp_path_factory: pytest.TempPathFactory, automaton: FeatureAutomaton
) -> None:
    for one in (automaton, automaton.zoom(1)):
        machine = loaded(one, tmp_path_factory.getbasetemp())
        names = {f"s{state.id}" for state in one.states} | {EXIT}
        assert {state.state_id for state in machine.states} == names
        for state in machine.states:
            total = sum(chance for _, _, chance in state.transitions[INPUT])
            assert total == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("make", [loop, html_system, hostile, lambda: large(30, 200)])
def test_no_token_or_name_breaks_the_file(make: Any, tmp_path: Path) -> None:
    automaton = replace(make(), name="label")
    machine = loaded(automaton, tmp_path)
    assert len(machine.states) == len(automaton.states) + 1
    text = (tmp_path / "machine.dot").read_text(encoding="utf-8")
    assert text == mealy_dot(automaton)
    assert text.isascii()
    n_arcs = sum(len(state.transitions[INPUT]) for state in machine.states)
    assert text.count(" -> ") == n_arcs + 1


def test_graphviz_reads_the_file_and_its_tooltips_are_the_tokens() -> None:
    graph = json.loads(_embedded(mealy_dot(hostile()), LAYOUT_SECONDS))
    tokens = {unescape(edge["tooltip"]) for edge in graph["edges"] if edge.get("tooltip")}
    assert set(HOSTILE) <= tokens
    assert len(graph["objects"]) == len(HOSTILE) + 2  # EXIT and the start


def test_aalpy_draws_as_often_as_the_weights_say(tmp_path: Path, monkeypatch: Any) -> None:
    import random  # noqa: PLC0415 - AALpy draws from the module's own

    machine = loaded(html_system(), tmp_path)
    monkeypatch.setattr(random, "random", random.Random(0).random)
    drawn = Counter()
    for _ in range(4000):
        machine.reset_to_initial()
        drawn[machine.step(INPUT)] += 1
    expected = {"t10": 0.91 * 0.6, "t11": 0.91 * 0.4, OTHER: 0.09}
    assert {symbol: n / 4000 for symbol, n in drawn.items()} == pytest.approx(expected, abs=0.03)


def test_aalpy_passes_the_machine_on_to_prism(tmp_path: Path) -> None:
    text = mdp_2_prism_format(loaded(loop(), tmp_path).to_mdp(), "loop")
    assert text.startswith("mdp")
    assert 'label "t10"' in text
    assert "0.83 : (loc'=" in text
