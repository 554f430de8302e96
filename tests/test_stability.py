"""Automata are looked for again in halves of the documents, and must be in several of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import shell
from paired_run import found_in, write_paired

import circuits
import sae_core
from circuits.assemble import MIN_DOCUMENTS, Draft
from circuits.discover import write_automata
from circuits.fidelity import Scores
from circuits.shape import Text
from circuits.stability import best_overlap, half_texts, stability
from circuits.states import Steps

if TYPE_CHECKING:
    from pathlib import Path

WORDS, N_ROWS = 7, 800


def drafted(kind: str, *features: int) -> Draft:
    """Give a draft of which only kind and features count."""
    none = np.zeros(0, np.int32)
    steps = Steps(np.zeros(0, np.int64), none, none, none)
    return Draft(kind, (features,), none, steps, Scores(0.5, 2.0, 1.0, 0.1))


def write_turns(path: Path, n_documents: int, n_with: int) -> Path:
    """Write a run in which two features take turns in some of the documents, the first ones."""
    n_rows, at = N_ROWS, np.arange(N_ROWS * n_documents)
    fires = (at % 20 < 6) & (at // n_rows < n_with)
    return sae_core.write_run(
        path,
        documents=pl.DataFrame({"doc_id": range(n_documents), "source": ["text"] * n_documents}),
        tokens={"doc_id": at // n_rows, "token_id": np.where(fires, at % 2, 2 + at % WORDS)},
        indptr=np.append(0, np.cumsum(fires)),
        features=(at[fires] % 20) % 2,
        acts=np.ones(int(fires.sum())),
        promotions=np.where(at[fires] % 20 < 5, 3.0, 0.0),
        vocabulary=[b"<", b">", *(b" word%d" % one for one in range(WORDS))],
        d_sae=3,
    )


def text_of(run: Path) -> Text:
    opened = circuits.open_run(run)
    return Text(opened.tokens(), opened.mean_acts, opened.vocabulary["token_str"].to_list())


def test_the_best_overlap_is_with_an_automaton_of_the_same_kind() -> None:
    one = drafted("system", 1, 2, 3)
    others = [drafted("system", 1, 2, 3, 4, 5, 6), drafted("system", 3), drafted("pair", 1, 2, 3)]
    assert best_overlap(one, others) == 3 / 6
    assert best_overlap(one, [others[2]]) == best_overlap(one, []) == 0


def test_stability_is_the_mean_over_halves() -> None:
    said: list[str] = []
    found = [drafted("loop", 1), drafted("pair", 2, 3)]
    halves = [[drafted("loop", 1), drafted("pair", 2, 3, 4)], [], [drafted("loop", 1)], []]
    assert stability(found, halves, said.append) == pytest.approx([2 / 4, 2 / 3 / 4])
    assert said[0] == "Half 1 of the documents: 2 automata."
    assert len(said) == 4


def test_without_halves_stability_is_not_measured() -> None:
    assert stability([drafted("loop", 1)], [], print) == [None]


def test_both_halves_of_a_cut_hold_all_documents_once(tmp_path: Path) -> None:
    text = text_of(write_turns(tmp_path / "run", 9, 9))
    cuts = [set(half.tokens.doc_ids.tolist()) for _, half in half_texts(text, 5)]
    assert [len(cut) for cut in cuts] == [4, 5, 4, 5, 4]
    assert cuts[0] | cuts[1] == cuts[2] | cuts[3] == set(range(9))
    assert cuts[0] != cuts[2] != cuts[4]
    again = [set(half.tokens.doc_ids.tolist()) for _, half in half_texts(text, 3)]
    assert again == cuts[:3]


def test_edges_of_a_half_are_those_of_a_run_of_its_documents(tmp_path: Path) -> None:
    whole = write_turns(tmp_path / "whole", 8, 8)
    alike = circuits.build_graph(write_turns(tmp_path / "half", 4, 4)).edges
    edges, half = next(half_texts(text_of(whole), 1))
    assert edges["n_pairs"].to_list() == alike["n_pairs"].to_list()
    assert edges["score"].to_list() == pytest.approx(alike["score"].to_list())
    assert half.mean_act.tolist() == pytest.approx([1, 1, 0])


def test_a_single_document_has_no_half(tmp_path: Path) -> None:
    run = write_turns(tmp_path / "run", 1, 1)
    assert list(half_texts(text_of(run), 2)) == []
    found_in(run)
    done = shell.invoke("automata", run, "--json", "--stability", 2)
    assert "Stability is not measured: the text is one document" in done.stderr
    assert [row["stability"] for row in json.loads(done.stdout)] == [None]


def test_what_is_in_every_document_is_found_in_every_half(tmp_path: Path) -> None:
    run = write_turns(tmp_path / "run", 30, 30)
    found_in(run)
    assert circuits.open_run(run).automata[0].scores["stability"] is None
    done = shell.invoke("automata", run, "--json", "--stability", 2)
    (row,) = json.loads(done.stdout)
    assert row["stability"] == 1.0
    assert row["bits_per_token_low"] > 0
    assert "Half 2 of the documents: 1 automata." in done.stderr
    assert "stability: 1\n" in shell.invoke("show", run, row["name"]).stdout


def test_the_same_halves_give_the_same_bytes(tmp_path: Path) -> None:
    run = write_turns(tmp_path / "run", 10, 10)
    graph = circuits.build_graph(run)
    files = []
    for _ in range(2):
        write_automata(run, circuits.find_automata(graph, n_stability=3))
        files.append([path.read_bytes() for path in sorted((run / "automata").iterdir())])
    assert files[0] == files[1]


def test_what_is_in_one_of_many_documents_is_not_listed(tmp_path: Path) -> None:
    run = write_turns(tmp_path / "run", MIN_DOCUMENTS, 4)
    found_in(run)
    lonely = write_turns(tmp_path / "lonely", MIN_DOCUMENTS, 1)
    said: list[str] = []
    assert circuits.find_automata(circuits.build_graph(lonely), progress=said.append) == []
    assert "saves no bits for sure on documents other than those it was counted on" in said[-1]


def test_of_few_documents_all_that_runs_is_listed(tmp_path: Path) -> None:
    found_in(write_turns(tmp_path / "run", MIN_DOCUMENTS - 1, 3))
    found_in(write_turns(tmp_path / "lonely", 1, 1))


def test_a_number_of_halves_that_is_none_is_refused(tmp_path: Path) -> None:
    run = write_turns(tmp_path / "run", 2, 2)
    graph = circuits.build_graph(run)
    with pytest.raises(
        ValueError, match="n_stability must be >= 0 halves of the documents, got -1"
    ):
        circuits.find_automata(graph, n_stability=-1)
    for number in ("-1", "many"):
        result = shell.invoke("automata", run, "--stability", number)
        assert result.exit_code == 2
        assert "--stability" in result.stderr


def test_halves_are_of_documents_that_are_not_held_out(tmp_path: Path) -> None:
    held = [False, True, False, True, False, False]
    run = write_paired(tmp_path / "run", n_documents=6, held_out=held)
    found_in(run)
    done = shell.invoke("automata", run, "--json", "--stability", 2)
    (row,) = json.loads(done.stdout)
    assert row["stability"] == 1.0
