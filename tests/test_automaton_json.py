from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
from drawn import hostile, html_system, loop
from hypothesis import given
from hypothesis import strategies as st

from circuits import automaton_json
from circuits.automaton import EXIT, EdgeToken, FeatureAutomaton, Transition, Variant
from sae_core.errors import GraphError


def folded() -> FeatureAutomaton:
    """Give an automaton with a description and two variants."""
    variants = (Variant("system", (0, 12), 1.5, 0.25), Variant("pair", (3,), -0.5, 0.0))
    return replace(html_system(), description="Reads `<`.", variants=variants)


@pytest.mark.parametrize("make", [html_system, loop, hostile, folded])
def test_an_automaton_survives_its_json(make: Any) -> None:
    automaton = make()
    assert FeatureAutomaton.from_json(automaton.to_json()) == automaton


@given(label=st.text(st.characters(exclude_categories=["Cs"])), share=st.floats(0, 1))
def test_any_label_and_share_survive_the_json(label: str, share: float) -> None:
    step = Transition(7, EXIT, share, (EdgeToken(1, label, share),), label, 3)
    automaton = replace(loop(), transitions=(step,))
    assert FeatureAutomaton.from_json(automaton.to_json()) == automaton


def test_equal_automata_give_equal_text() -> None:
    assert html_system().to_json() == html_system().to_json()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("name",), "No Slug", "name is 'No Slug'; expected a slug"),
        (("kind",), "knot", "kind is 'knot'; expected one of loop, pair, chain, system"),
        (("scores", "retention"), True, "scores.retention is True; expected a finite number"),
        (("scores", "retention"), 10**400, "scores.retention is 1000"),
        (("scores",), [], "scores is []; expected an object"),
        (("states",), [], "states is []; expected a list of at least 1"),
        (("states", 1, "id"), 0, "states is [0, 0, 2, 3]; expected ids, each once"),
        (("states", 0, "features"), [-1], "states[0].features[0] is -1; expected an integer"),
        (("states", 0, "label"), None, "states[0].label is None; expected text"),
        (("states", 0, "label"), "\ud800", "expected text without lone surrogates"),
        (("states", 0, "examples", 0, "focus"), 99, "focus is 99; expected an index below 6"),
        (("states", 0, "examples", 0, "values"), [0.5], "length of states[0].examples[0].values"),
        (("states", 0, "examples", 0, "tokens"), "text", "tokens is 'text'; expected a list"),
        (("transitions", 3, "probability"), 1.5, "transitions[3].probability is 1.5; expected a"),
        (("transitions", 3, "probability"), 0.9, "sum of probability is 1.43"),
        (("transitions", 0, "source"), 9, "transitions[0].source is 9; expected the id of a state"),
        (("transitions", 0, "target"), "exit", "transitions[0].target is 'exit'"),
        (("transitions", 0, "target"), 9, 'expected the id of a state or "EXIT"'),
        (("transitions", 0, "n_pairs"), 1.0, "transitions[0].n_pairs is 1.0; expected an integer"),
        (("transitions", 0, "causal"), "big", "transitions[0].causal is 'big'"),
        (("transitions", 0, "tokens", 0, "share"), 2, "transitions[0].tokens[0].share is 2"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(path: tuple[Any, ...], value: Any, said: str) -> None:
    document = json.loads(html_system().to_json())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(GraphError, match=re.escape(said)):
        FeatureAutomaton.from_json(json.dumps(document))


def test_a_missing_key_is_named_by_its_path() -> None:
    document = json.loads(html_system().to_json())
    del document["transitions"][2]["n_pairs"]
    with pytest.raises(GraphError, match=r"transitions\[2\]\.n_pairs is missing"):
        FeatureAutomaton.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"name": NaN}'])
def test_text_that_is_no_automaton_is_refused(text: str) -> None:
    with pytest.raises(GraphError, match="automaton"):
        FeatureAutomaton.from_json(text)


def test_a_score_that_is_no_number_is_not_written() -> None:
    with pytest.raises(GraphError, match=r"scores\.retention is nan"):
        replace(loop(), scores={"retention": float("nan")}).to_json()


@pytest.mark.parametrize("bad", [float("nan"), {1, 2}, "\ud800"])
def test_provenance_that_is_no_json_is_not_written(bad: object) -> None:
    with pytest.raises(GraphError, match="provenance is no JSON"):
        replace(loop(), provenance={"bad": bad}).to_json()


def test_keys_of_later_versions_are_left_alone() -> None:
    document = json.loads(loop().to_json())
    document["later"] = document["states"][0]["later"] = 1
    assert FeatureAutomaton.from_json(json.dumps(document)) == loop()


def test_files_of_earlier_versions_have_no_description_and_no_variants() -> None:
    document = json.loads(folded().to_json())
    del document["description"], document["variants"]
    read = FeatureAutomaton.from_json(json.dumps(document))
    assert read == html_system()
    assert (read.description, read.variants) == ("", ())


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("description",), 3, "description is 3; expected text"),
        (("variants",), {}, "variants is {}; expected a list"),
        (("variants", 1, "kind"), "knot", "variants[1].kind is 'knot'; expected one of"),
        (("variants", 0, "features"), [], "variants[0].features is []; expected a list of"),
        (("variants", 0, "features"), [1.5], "variants[0].features[0] is 1.5; expected an integer"),
        (("variants", 0, "bits_saved"), None, "variants[0].bits_saved is None; expected a finite"),
        (("variants", 0, "coverage"), 2, "variants[0].coverage is 2; expected a number in [0, 1]"),
    ],
)
def test_a_wrong_variant_is_named_by_its_path(path: tuple[Any, ...], value: Any, said: str) -> None:
    document = place = json.loads(folded().to_json())
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(GraphError, match=re.escape(said)):
        FeatureAutomaton.from_json(json.dumps(document))


def test_the_schema_and_the_check_know_the_same_keys() -> None:
    schema = json.loads((files("circuits") / "automaton.schema.json").read_text("utf-8"))
    document = json.loads(html_system().to_json())
    parts = {
        "state": document["states"][0],
        "example": document["states"][0]["examples"][0],
        "transition": document["transitions"][0],
        "edge_token": document["transitions"][0]["tokens"][0],
        "variant": json.loads(folded().to_json())["variants"][0],
    }
    assert sorted(document) == sorted(schema["properties"])
    assert sorted(schema["required"]) == sorted(set(document) - {"description", "variants"})
    for name, value in parts.items():
        part = schema["$defs"][name]
        assert sorted(part["required"]) == sorted(value) == sorted(part["properties"])
    assert tuple(schema["properties"]["kind"]["enum"]) == automaton_json.KINDS
    assert schema["$defs"]["variant"]["properties"]["kind"]["enum"] == list(automaton_json.KINDS)
    assert schema["$defs"]["index"]["maximum"] == automaton_json.MAX_INDEX


def test_networkx_carries_states_labels_and_the_exit() -> None:
    graph = html_system().to_networkx()
    assert sorted(map(str, graph.nodes)) == ["0", "1", "2", "3", "EXIT"]
    assert graph.nodes[2]["features"] == [408, 12]
    assert graph.number_of_edges() == len(html_system().transitions)
    assert graph.edges[1, 2, 0]["tokens"] == {" class": 1.0}
    assert graph.edges[1, 2, 0]["causal"] == 0.25


def test_transitions_leave_a_state_most_probable_first() -> None:
    automaton = html_system()
    assert [step.probability for step in automaton.leaving(1)] == [0.47, 0.38, 0.15]
    assert automaton.exit_probability(1) == 0.15
    assert automaton.state(2).label == "attribute name"
    assert automaton.features == (0, 12, 20, 30, 311, 408, 494)


def test_a_state_that_is_not_there_is_named() -> None:
    with pytest.raises(GraphError, match="has no state 9; its states are 0, 1, 2, 3"):
        html_system().state(9)
