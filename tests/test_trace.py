"""Automata read text by features or alone, a row a token, and write text of their own."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from drawn import html_system, loop
from hypothesis import given
from hypothesis import strategies as st
from tagged import VOCABULARY, tagged_run, tags

from circuits.automaton import EdgeToken, Transition
from circuits.trace import TRACE_SCHEMA, sample, states_by_tokens, trace
from circuits.trace_text import greedy_tokens
from sae_core.errors import GraphError, StoreError
from sae_core.store import read_tokens, write_tokens

if TYPE_CHECKING:
    from pathlib import Path

    import circuits

STRS = ["<", "a", ">", "x", "\\n", "<a"]
SOURCES = {0: "one.html", 1: "two.html"}


@pytest.fixture
def run(tmp_path: Path) -> circuits.Run:
    return tagged_run(tmp_path)


def traced(run: circuits.Run, **more: Any) -> Any:
    options = {"mean_act": np.ones(7)} | more
    return trace(tags(), run.tokens(), token_strs=STRS, sources=SOURCES, **options)


def test_a_trace_has_a_row_a_token_and_the_columns_of_the_interface(run: circuits.Run) -> None:
    frame = traced(run)
    assert dict(frame.schema) == TRACE_SCHEMA
    assert frame.columns == [
        "source", "doc_id", "pos", "token_str", "byte_end", "state", "features", "probability",
        "promoted",
    ]  # fmt: skip
    assert "".join(frame["token_str"]) == "<a>x<a\\n>a<"
    assert frame["source"].to_list() == ["one.html"] * 6 + ["two.html"] * 4
    assert frame["pos"].to_list() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert frame["byte_end"].to_list() == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4]


def test_by_features_the_state_is_the_one_that_fires(run: circuits.Run) -> None:
    frame = traced(run)
    assert frame["state"].to_list() == [2, 5, None, None, 2, 5, 9, None, 5, 2]
    assert frame["features"].to_list() == [[0], [1], [], [], [3], [1], [4], [], [1], [0, 3]]


def test_probability_is_of_this_token_from_the_state_before(run: circuits.Run) -> None:
    expected = [None, 0.75, 0.4, None, None, 0.75, None, 1.0, None, 0.5]
    assert traced(run)["probability"].to_list() == pytest.approx(expected)


def test_promoted_are_the_likeliest_next_tokens(run: circuits.Run) -> None:
    promoted = traced(run)["promoted"].to_list()
    assert promoted[0] == ["a", "<"]
    assert promoted[1] == ["<", ">", "x"]
    assert promoted[2] == []


def test_by_tokens_the_automaton_reads_alone(run: circuits.Run) -> None:
    # < enters 2, a leads to 5, > leads out, x enters nothing; a new window starts outside;
    # \n enters 9 by its example, > leads out, a enters 5, < leads to 2.
    frame = traced(run, by="tokens", mean_act=None)
    assert frame["state"].to_list() == [2, 5, None, None, 2, 5, 9, None, 5, 2]
    assert frame["features"].to_list() == [[]] * 10


def test_the_states_of_a_trace_by_tokens_can_be_had_alone(run: circuits.Run) -> None:
    found = run.automata[0].trace(run.document(0), by="tokens")
    follows = np.array([True, True, True, False, True, False])
    assert (
        states_by_tokens(tags(), found["token_str"].to_list(), follows) == found["state"].to_list()
    )


def test_by_tokens_a_token_on_no_arrow_leads_outside(run: circuits.Run) -> None:
    frame = tags().trace(b"<xa", run=run, by="tokens")
    assert frame["state"].to_list() == [2, None, 5]
    assert frame["probability"].to_list() == [None, 0.0, None]


def test_by_tokens_a_rare_token_of_an_arrow_enters_nothing(run: circuits.Run) -> None:
    first, *rest = tags().transitions
    tokens = (EdgeToken(1, "a", 0.97), EdgeToken(3, "x", 0.03))
    automaton = replace(tags(), transitions=(replace(first, tokens=tokens), *rest))
    assert automaton.trace(b"x<x", run=run, by="tokens")["state"].to_list() == [None, 2, 5]


def test_by_tokens_the_most_probable_arrow_is_taken(run: circuits.Run) -> None:
    more = Transition(2, 9, 0.01, (EdgeToken(1, "a", 1.0),), "a", 1)
    automaton = replace(tags(), transitions=(more, *tags().transitions))
    frame = trace(automaton, run.tokens(), token_strs=STRS, sources=SOURCES, by="tokens")
    assert frame["state"].to_list()[:2] == [2, 5]


def test_a_document_of_the_run_is_traced_on_its_features(run: circuits.Run) -> None:
    (automaton,) = run.automata
    frame = automaton.trace(run.document(1))
    assert frame["state"].to_list() == [9, None, 5, 2]
    assert frame["source"].unique().to_list() == ["two.html"]
    assert frame["features"].to_list()[-1] == [0, 3]


def test_other_text_is_traced_by_tokens_cut_by_the_vocabulary(run: circuits.Run) -> None:
    (automaton,) = run.automata
    frame = automaton.trace("< a\xff>")
    assert frame["token_str"].to_list() == ["<", " ", "a", "\\xc3", "\\xbf", ">"]
    assert frame["state"].to_list() == [2, None, 5, None, None, None]
    assert frame["byte_end"].to_list() == [1, 2, 3, 4, 5, 6]
    assert frame["source"].unique().to_list() == ["text"]


def test_no_text_has_no_rows(run: circuits.Run) -> None:
    frame = run.automata[0].trace(b"")
    assert dict(frame.schema) == TRACE_SCHEMA
    assert len(frame) == 0


def test_other_text_by_features_is_refused(run: circuits.Run) -> None:
    with pytest.raises(GraphError, match=r"no document of .* has these 3 bytes, and features need"):
        run.automata[0].trace(b"new", by="features")


def test_a_run_without_activations_is_traced_by_tokens(run: circuits.Run) -> None:
    (automaton,) = run.automata
    write_tokens(run.path / "tokens/00000.parquet", read_tokens(run.path), keep_acts=False)
    frame = automaton.trace(run.document(0))
    assert frame["state"].to_list() == [2, 5, None, None, 2, 5]
    assert frame["source"][0] == "one.html"
    with pytest.raises(StoreError, match="keeps no activations"):
        automaton.trace(run.document(0), by="features")


def test_an_automaton_of_no_run_asks_for_one(run: circuits.Run) -> None:
    with pytest.raises(GraphError, match="belongs to no run; take it from"):
        tags().trace(b"<")
    assert len(tags().trace(b"<", run=run)) == 1


def test_the_run_is_no_part_of_the_automaton(run: circuits.Run) -> None:
    (automaton,) = run.automata
    assert automaton == tags()
    assert automaton.to_json() == tags().to_json()


def test_a_zoomed_automaton_still_knows_its_run(run: circuits.Run) -> None:
    zoomed = run.automata[0].zoom(1)
    assert zoomed.trace(run.document(1))["state"].to_list() == [2, None, 2, 2]


def test_an_automaton_of_another_dictionary_is_refused(run: circuits.Run) -> None:
    with pytest.raises(GraphError, match="html-tags has feature 494, but the dictionary has 7"):
        html_system().trace(run.document(0), run=run)


def test_an_unknown_way_to_read_is_refused(run: circuits.Run) -> None:
    with pytest.raises(ValueError, match='by must be "features" or "tokens", got \'magic\''):
        traced(run, by="magic")
    with pytest.raises(ValueError, match="mean_act is missing"):
        traced(run, mean_act=None)


def test_a_damaged_shard_is_named(run: circuits.Run) -> None:
    (automaton,) = run.automata
    (run.path / "tokens/00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"00000\.parquet is not a whole token shard"):
        automaton.trace(b"<a")


def test_a_sample_walks_the_arrows_from_the_most_visited_state_to_exit() -> None:
    follows = {"a": {"<", ">", "x"}, "<": {"a", "<"}}
    for seed in range(100):
        *inside, last = sample(tags(), 200, seed=seed)  # 200 are never reached
        assert inside[0] in {"a", "<"}
        assert last in {">", "x"}
        assert all(b in follows[a] for a, b in pairwise([*inside, last]))


def test_a_sample_is_the_same_for_a_seed_alone() -> None:
    drawn = [tags().sample(200, seed) for seed in range(20)]
    assert drawn == [tags().sample(200, seed) for seed in range(20)]
    assert len({tuple(tokens) for tokens in drawn}) > 5


def test_a_longer_sample_begins_as_the_shorter_one() -> None:
    for seed in range(20):
        whole = tags().sample(200, seed)
        assert [tags().sample(n, seed) for n in range(len(whole) + 1)] == [
            whole[:n] for n in range(len(whole) + 1)
        ]


def test_a_sample_follows_the_probabilities() -> None:
    drawn = [tags().sample(200, seed) for seed in range(1000)]
    after = [b for one in drawn for a, b in pairwise(one) if a == "<"]
    assert after.count("a") / len(after) == pytest.approx(0.75, abs=0.05)
    assert sum(one[-1] == ">" for one in drawn) / 1000 == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("make", [loop, html_system])
@pytest.mark.parametrize("n", [0, 1, 30])
def test_a_sample_has_no_more_tokens_than_asked_for(make: Any, n: int) -> None:
    automaton = make()
    known = {token.token_str for step in automaton.transitions for token in step.tokens}
    for seed in range(20):
        drawn = automaton.sample(n, seed)
        assert len(drawn) <= n
        assert set(drawn) <= known


def test_what_a_row_lacks_to_1_ends_a_sample() -> None:
    drawn = [len(loop().sample(1000, seed)) for seed in range(1000)]  # stays with 0.83
    assert np.mean(drawn) == pytest.approx(0.83 / 0.17, rel=0.1)


def test_an_automaton_whose_arrows_name_no_token_has_no_sample() -> None:
    steps = tuple(replace(step, tokens=()) for step in tags().transitions)
    assert replace(tags(), transitions=steps).sample(5, seed=0) == []
    assert replace(tags(), transitions=()).sample(5, seed=0) == []
    endless = (Transition(2, 2, 1.0, (EdgeToken(0, "<", 0.0),), "", 1),)
    assert replace(tags(), transitions=endless).sample(5, seed=0) == []


def test_a_negative_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="n_tokens must be >= 0, got -1"):
        tags().sample(-1, seed=0)


@given(st.binary(max_size=40), st.lists(st.binary(max_size=4), max_size=6))
def test_a_greedy_cut_joins_to_the_text(text: bytes, vocabulary: list[bytes]) -> None:
    pieces = greedy_tokens(text, vocabulary)
    assert b"".join(pieces) == text
    assert all(len(piece) == 1 or piece in vocabulary for piece in pieces)


def test_a_greedy_cut_takes_the_longest_entry() -> None:
    assert greedy_tokens(b"<a><b", [*VOCABULARY, b"<a>", b""]) == [b"<a>", b"<", b"b"]
