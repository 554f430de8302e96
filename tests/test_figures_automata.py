"""Scores of automata, and of the machines beside them, are those worked out by hand."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

import circuits
from circuits.automaton import EXIT, EdgeToken, FeatureAutomaton, State, Transition
from circuits.labels import LABELERS
from circuits.states import steps_of
from figures.automata_bits import bits_rows, ngram_chances
from figures.automata_kinds import kind_scores
from figures.automata_machines import (
    AUTOMATON,
    CLUSTERS,
    HMM,
    Clusters,
    HiddenMarkovModel,
    fit_hmm,
    spans_of,
)
from figures.automata_page import summary_text, wins_text
from figures.automata_texts import Part, labelled
from figures.automata_truth import TOKEN, levels_of, score_inside
from sae_core.run_writer import write_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MOVES = np.array([[0.9, 0.1], [0.2, 0.8]])
EMITS = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])  # a token tells the state
ENTROPY = 1 - (2 * np.log2(MOVES[0]) @ MOVES[0] + np.log2(MOVES[1]) @ MOVES[1]) / 3  # bits a token


def machine(n_states: int, name: str = "system-x") -> FeatureAutomaton:
    """Make an automaton of a feature a state; its arrows go round, on tokens 0, 1, ..."""
    states = tuple(State(at, str(at), (at,)) for at in range(n_states))
    steps = tuple(
        Transition(at, (at + 1) % n_states, 1.0, (EdgeToken(at, "abcdef"[at], 1.0),), "", 50)
        for at in range(n_states)
    )
    return FeatureAutomaton(name, "X", "system", {}, states, steps)


def run_of(
    folder: Path,
    documents: Sequence[tuple[str, bool, Sequence[int], Sequence[int | None]]],
    vocabulary: Sequence[bytes],
    *,
    d_sae: int = 3,
) -> circuits.Run:
    """Write a run from documents of (source, held out, tokens, the feature that fires on each)."""
    fires = [feature for *_, fired in documents for feature in fired]
    doc_ids = [at for at, (_, _, ids, _) in enumerate(documents) for _ in ids]
    path = write_run(
        folder,
        documents={
            "doc_id": list(range(len(documents))),
            "source": [source for source, *_ in documents],
            "held_out": [is_held_out for _, is_held_out, *_ in documents],
        },
        tokens={
            "doc_id": doc_ids,
            "token_id": [token for _, _, ids, _ in documents for token in ids],
        },
        indptr=np.cumsum([0, *(feature is not None for feature in fires)]),
        features=[feature for feature in fires if feature is not None],
        acts=[1.0] * sum(feature is not None for feature in fires),
        promotions=[0.0] * sum(feature is not None for feature in fires),
        vocabulary=list(vocabulary),
        d_sae=d_sae,
    )
    return circuits.open_run(path)


def part_of(
    run: circuits.Run, *, held_out: bool | None, neurons: NDArray[np.floating] | None = None
) -> Part:
    tokens = run.tokens(held_out=held_out)
    given = np.zeros((len(tokens.token_ids), 1)) if neurons is None else neurons
    return Part(run, held_out, tokens, given.astype(np.float16), None)


def chain(n: int, seed: int) -> tuple[list[int], list[int]]:
    """Draw n states of the known chain, and a token of each."""
    rng = np.random.default_rng(seed)
    states = [int(rng.random() < 1 / 3)]  # as often as in the long run
    for chance in rng.random(n - 1):
        states.append(int(chance >= MOVES[states[-1], 0]))
    return states, (2 * np.array(states) + rng.integers(0, 2, n)).tolist()


def test_a_hidden_markov_model_reaches_the_entropy_of_a_known_chain(tmp_path: Path) -> None:
    documents = []
    for seed in range(120):
        _, ids = chain(150, seed)
        documents.append((f"{seed}.txt", seed > 79, ids, [0] * len(ids)))
    run = run_of(tmp_path / "run", documents, [b"a", b"b", b"c", b"d"])
    training, unseen = (run.tokens(held_out=held_out) for held_out in (False, True))
    inside = np.zeros(len(training.token_ids), int)
    model = fit_hmm(
        spans_of(training, inside, max_steps=3000),
        spans_of(training, inside),
        2,
        np.full(4, 0.25),
    )
    order = np.argsort(model.emits[:, 2])  # states have no order of their own
    assert model.moves[np.ix_(order, order)] == pytest.approx(MOVES, abs=0.03)
    assert model.emits[order] == pytest.approx(EMITS, abs=0.03)
    chances = model.step_chances(spans_of(unseen, np.zeros(len(unseen.token_ids), int)))
    assert -np.log2(chances).mean() == pytest.approx(ENTROPY, abs=0.03)


def test_the_forward_filter_sums_over_all_paths(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = HiddenMarkovModel(
        rng.dirichlet(np.ones(3)),
        rng.dirichlet(np.ones(3), size=3),
        rng.dirichlet(np.ones(4), size=3),
    )
    texts = [[0, 3, 1, 1, 2], [2, 2], [1, 0, 3]]
    documents = [(f"{at}.txt", False, ids, [0] * len(ids)) for at, ids in enumerate(texts)]
    tokens = run_of(tmp_path / "run", documents, [b"a", b"b", b"c", b"d"]).tokens()

    def chance_of(ids: list[int]) -> float:
        total = 0.0
        for path in itertools.product(range(3), repeat=len(ids)):
            chance = model.first[path[0]] * model.emits[path[0], ids[0]]
            for before, now, token in zip(path, path[1:], ids[1:], strict=False):
                chance *= model.moves[before, now] * model.emits[now, token]
            total += chance
        return total

    expected = [
        chance_of(ids[: at + 1]) / chance_of(ids[:at]) for ids in texts for at in range(1, len(ids))
    ]
    spans = spans_of(tokens, np.zeros(len(tokens.token_ids), int))
    assert model.step_chances(spans) == pytest.approx(np.array(expected))


def test_spans_hold_the_steps_of_the_automaton_and_the_token_after(tmp_path: Path) -> None:
    fired: list[tuple[list[int], list[int | None]]] = [
        ([0, 1, 2, 3, 0, 1], [None, 0, 1, None, 0, 1]),  # 1 2 3 and 0 1
        ([2, 3], [None, 0]),  # nothing follows
        ([3, 2], [0, None]),  # 3 2
    ]
    documents = [(f"{at}.txt", False, ids, on) for at, (ids, on) in enumerate(fired)]
    tokens = run_of(tmp_path / "run", documents, [b"a", b"b", b"c", b"d"]).tokens()
    states = np.array([-1, 0, 1, -1, 0, 1, -1, 0, 0, -1])
    spans = spans_of(tokens, states)
    assert spans.token_ids.tolist() == [1, 0, 3, 2, 1, 2, 3]
    assert spans.starts.tolist() == [0, 3, 6, 7]
    steps = steps_of(tokens, states.astype(np.int32))
    assert spans.n_steps == len(steps.rows) == 4
    assert sorted(spans.rows[spans.starts[1] :] - 1) == steps.rows.tolist()
    assert spans_of(tokens, states, max_steps=2).n_steps == 3  # every second span


def test_k_means_finds_known_clusters_and_no_more_than_there_are() -> None:
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 600)
    neurons = 10 * np.eye(3)[truth] + rng.normal(0, 0.1, (600, 3))
    found = Clusters(neurons, 3).of(neurons)
    assert len(set(zip(truth.tolist(), found.tolist(), strict=True))) == 3
    same = np.zeros((5, 3))
    assert set(Clusters(same, 4).of(same).tolist()) == {0}


def two_emitters(folder: Path) -> tuple[circuits.Run, NDArray[np.int64]]:
    """Write text whose every token is drawn by a state that no earlier token tells."""
    rng = np.random.default_rng(0)
    documents, states = [], []
    for at in range(80):
        own = rng.integers(0, 2, 151)
        ids = np.append(0, 2 * own[:-1] + rng.integers(0, 2, 150))
        documents.append((f"{at}.txt", at > 49, ids.tolist(), own.tolist()))
        states.append(own)
    return run_of(folder, documents, [b"a", b"b", b"c", b"d"]), np.concatenate(states)


def test_an_automaton_that_knows_what_tokens_do_not_is_ahead_by_as_much(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run, states = two_emitters(tmp_path / "run")
    noise = np.random.default_rng(1).normal(size=(len(states), 2))
    told = {}
    for what, neurons in (("states", 9 * np.eye(2)[states]), ("noise", noise)):
        parts = (
            part_of(run, held_out=held_out, neurons=neurons[rows])
            for held_out, rows in ((False, slice(50 * 151)), (True, slice(50 * 151, None)))
        )
        (told[what],) = bits_rows([machine(2)], *parts)
    knows, blind = told["states"], told["noise"]
    assert knows.n_steps == 30 * 150
    assert knows.bits[AUTOMATON] == pytest.approx(1, abs=0.02)  # of two tokens, which
    assert knows.bits[HMM] == pytest.approx(2, abs=0.02)  # of four
    assert knows.bits[CLUSTERS] == pytest.approx(knows.bits[AUTOMATON])
    assert blind.bits[CLUSTERS] == pytest.approx(2, abs=0.02)
    assert knows.bits["spans' unigram"] == pytest.approx(2, abs=0.01)
    assert not knows.is_ahead
    assert blind.is_ahead
    assert blind.is_clearly_ahead
    lead = blind.leads[HMM]
    assert lead.low is not None
    assert lead.high is not None
    assert 0.9 < lead.low <= lead.bits <= lead.high < 1.1


def test_one_state_is_one_cluster_and_is_not_counted(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run, _ = two_emitters(tmp_path / "run")
    parts = (part_of(run, held_out=held_out) for held_out in (False, True))
    rows = list(bits_rows([machine(1, "loop-x"), machine(2)], *parts))
    assert rows[0].bits[AUTOMATON] == pytest.approx(rows[0].bits[CLUSTERS])
    assert "Of 1 automata with two states or more, 1 need fewer bits" in wins_text(rows)
    assert "The 1 with one state are not counted" in wins_text(rows)


def test_an_automaton_that_held_out_text_never_enters_has_no_bits(tmp_path: Path) -> None:
    documents = [("a", False, [0, 1], [0, 0]), ("b", True, [0, 1], [None, None])]
    run = run_of(tmp_path / "run", documents, [b"a", b"b"])
    (row,) = bits_rows([machine(1)], *(part_of(run, held_out=held) for held in (False, True)))
    assert (row.n_steps, row.bits, row.is_ahead) == (0, {}, False)


def test_n_grams_read_whole_documents(tmp_path: Path) -> None:
    turns = [0, 1] * 200
    documents = [
        ("a", False, turns, [0] * 400),
        ("b", False, turns, [0] * 400),
        ("c", True, [0, 1, 0, 1, 0], [0] * 5),
    ]
    run = run_of(tmp_path / "run", documents, [b"a", b"b"])
    found = ngram_chances(run.tokens(held_out=False), run.tokens(held_out=True), 2)
    assert set(found) == {"bigram", "trigram"}
    for chances in found.values():
        assert len(chances) == 5
        assert (chances[1:] > 0.8).all()


# Tokens < a > x; the parser says tagOpen, tagName, data, data. State 0 fires on <, 1 on a, and in
# the page of package q once on x.
TAGS = [b"<", b"a", b">", b"x"]
GOOD: tuple[list[int], list[int | None]] = ([0, 1, 2, 3] * 3, [0, 1, None, None] * 3)
MISFIRE: tuple[list[int], list[int | None]] = (
    [0, 1, 2, 3, 0, 1, 2],
    [0, 1, None, 1, None, 1, None],
)


def tagged_parts(folder: Path) -> tuple[circuits.Run, Part, Part]:
    run = run_of(folder / "run", [("html/p/0.html", False, *GOOD)], TAGS)
    pages = run_of(
        folder / "pages",
        [("d/q/0.html", True, *MISFIRE), ("d/r/0.html", True, *GOOD)],
        TAGS,
    )
    return run, part_of(run, held_out=False), part_of(pages, held_out=None)


def test_accuracy_and_coverage_inside_spans_are_those_counted_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run, training, pages = tagged_parts(tmp_path)
    found = score_inside(
        machine(2), [labelled(training, "html")], labelled(pages, "html"), run, kind="html"
    )
    row = found.row(AUTOMATON)
    assert row.n_tokens == 4 + 6  # q: < a x a; r: three times < a
    assert row.accuracy == pytest.approx(9 / 10)
    assert row.low == pytest.approx(3 / 4)  # q drawn twice
    assert row.high == 1.0
    assert found.row(TOKEN).accuracy == pytest.approx(9 / 10)  # x was not seen inside: tagName? no
    names = LABELERS["html"].names
    tag, name, data = (names.index(one) for one in ("tagOpen", "tagName", "data"))
    expected = np.zeros_like(found.confusion)
    expected[tag, tag], expected[name, name], expected[data, name] = 4, 5, 1
    assert np.array_equal(found.confusion, expected)
    assert row.macro_f1 == pytest.approx((1 + 10 / 11 + 0) / 3)
    assert found.coverage.share == pytest.approx(9 / 10)  # of ten tag tokens, one < is outside
    assert found.coverage.n_tokens == 10


def test_by_tokens_the_automaton_reads_without_features(tmp_path: Path) -> None:
    run, training, pages = tagged_parts(tmp_path)
    steps = (
        Transition(0, 1, 1.0, (EdgeToken(1, "a", 1.0),), "a", 50),
        Transition(1, 0, 0.5, (EdgeToken(0, "<", 1.0),), "<", 25),
        Transition(1, EXIT, 0.5, (EdgeToken(2, ">", 1.0),), ">", 25),
    )
    states = (State(0, "<", (0,)), State(1, "a", (1,)))
    reads = FeatureAutomaton("system-t", "T", "system", {}, states, steps)
    texts = [labelled(training, "html")], labelled(pages, "html")
    found = score_inside(reads, *texts, run, kind="html", by="tokens")
    assert found.row(AUTOMATON).accuracy == 1.0
    assert found.coverage.share == 1.0
    assert CLUSTERS not in [row.what for row in found.rows]


def test_the_automaton_that_covers_most_is_scored_at_fewer_states_too(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    run, training, pages = tagged_parts(tmp_path)
    few, many = machine(1, "loop-x"), machine(2)
    found = kind_scores(run, [few, many], [training], pages, "html")
    assert found is not None
    assert found.packages == ["q", "r"]
    assert [one.name for one in found.found] == ["system-x", "loop-x"]
    assert [(one.by, one.n_states) for one in found.detail] == [("features", 2), ("tokens", 2)]
    assert [len(level.states) for level in levels_of(machine(6))] == [6, 5, 4]


def test_a_package_that_teaches_is_not_scored(tmp_path: Path) -> None:
    run, training, _ = tagged_parts(tmp_path)
    same = run_of(
        tmp_path / "same", [("d/p/0.html", True, *GOOD), ("d/q/0.html", True, *GOOD)], TAGS
    )
    more = run_of(
        tmp_path / "more", [("e/q/0.html", True, *GOOD), ("e/r/0.html", True, *GOOD)], TAGS
    )
    parts = [part_of(one, held_out=None) for one in (same, more)]
    with pytest.raises(ValueError, match="package q would both teach and be scored"):
        kind_scores(run, [machine(2)], [training, parts[0]], parts[1], "html")


def test_utf8_takes_automata_whose_spans_are_mostly_beyond_ascii(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    ids = [0, 1, 2, 0, 1, 2, 2, 2]
    fires: list[int | None] = [0, 1, 2, 0, 1, 2, 2, 2]
    documents = [("one.txt", False, ids, fires), ("two.txt", True, ids, fires)]
    run = run_of(tmp_path / "run", documents, [b"\xc3", b"\xa4", b"a"])
    training, unseen = (part_of(run, held_out=held) for held in (False, True))
    ascii_too = FeatureAutomaton("pair-y", "Y", "pair", {}, (State(0, "", (1, 2)),), ())
    found = kind_scores(run, [ascii_too, machine(2)], [training], unseen, "utf8")
    assert found is not None
    assert [one.name for one in found.found] == ["system-x"]
    assert found.found[0].row(AUTOMATON).accuracy == 1.0
    assert found.found[0].row(AUTOMATON).n_tokens == 4
    assert "| 0.97 | 1.000; 1 of 1 automata alone | yes |" in summary_text([], found, None)


def test_text_that_a_parser_cannot_read_has_no_scores(tmp_path: Path) -> None:
    run, training, pages = tagged_parts(tmp_path)
    assert kind_scores(run, [machine(2)], [training], pages, "python") is None
    assert "no such automaton" in summary_text([], None, None)
