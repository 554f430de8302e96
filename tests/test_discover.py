"""Automata hidden in a world are found, and in a world without any, none."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import naive
import numpy as np
import polars as pl
import pytest
from planted import PlantedWorld, planted_world

import circuits
from circuits.assemble import Draft
from circuits.automaton import Variant
from circuits.discover import (
    KINDS,
    MAX_OVERLAP,
    MAX_PER_KIND,
    index_frame,
    is_part,
    rank,
    tied,
    unions,
    write_automata,
)
from circuits.fidelity import Scores
from circuits.states import Steps
from sae_core.errors import GraphError
from sae_core.run_writer import write_run
from sae_core.store import read_documents, read_manifest, read_tokens, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from circuits.automaton import FeatureAutomaton

SEEDS = (0, 1, 2, 3)
# Measured over seeds 0..5: loop 0.89, pair 1.00, system 1.00, chain 0.98. A loop of two features
# is found as one of them, or in a larger set.
FLOORS = {"loop": 0.75, "pair": 0.9, "system": 0.9, "chain": 0.85}


class Found:
    """A planted world and the automata that were found in it."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.world: PlantedWorld = planted_world(folder / f"run-{seed}", seed=seed)
        self.automata = circuits.find_automata(circuits.build_graph(self.world.path))

    def best(self, machine: int, kind: str | None = None) -> float:
        """Give the largest Jaccard overlap with a machine; features of single tokens set aside."""
        truth = self.world.groups[machine]
        sets = [
            set(one.features) - self.world.identity
            for one in self.automata
            if kind in (None, one.kind)
        ]
        return max((len(truth & found) / len(truth | found) for found in sets), default=0.0)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    folder = tmp_path_factory.mktemp("planted")
    return [Found(seed, folder) for seed in SEEDS]


def test_hidden_automata_of_every_kind_are_found(found: list[Found]) -> None:
    overlaps = defaultdict(list)
    for one in found:
        for machine, kind in enumerate(one.world.kinds):
            overlaps[kind].append(one.best(machine))
    means = {kind: float(np.mean(values)) for kind, values in overlaps.items()}
    assert set(means) == set(KINDS)
    assert all(means[kind] >= FLOORS[kind] for kind in KINDS), means


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_automata_are_found_as_what_they_are(found: list[Found], kind: str) -> None:
    overlaps = [one.best(one.world.kinds.index(kind), kind) for one in found]
    assert np.mean(overlaps) >= 0.7, overlaps


def test_states_of_a_pair_are_the_hidden_ones(found: list[Found]) -> None:
    for one in found:
        hidden = one.world.states[one.world.kinds.index("pair")]
        states = [
            {frozenset(state.features) - one.world.identity for state in automaton.states}
            for automaton in one.automata
        ]
        assert set(hidden) in states


def test_features_that_stay_on_around_a_machine_are_no_automaton(found: list[Found]) -> None:
    for one in found:
        for automaton in one.automata:
            assert not set(automaton.features) <= one.world.context, automaton.name


def draft(sequence: str, features: tuple[int, ...]) -> Draft:
    """Give a system that is current where the text says x."""
    states = np.array([0 if mark == "x" else -1 for mark in sequence], np.int32)
    none = np.zeros(0, np.int32)
    scores = Scores(0.5, 2.0, 1.0, 0.1)
    steps = Steps(np.zeros(0, np.int64), none, none, none)
    return Draft("system", tuple((feature,) for feature in features), states, steps, scores)


def test_systems_are_tried_as_one_only_where_they_lead_to_each_other() -> None:
    whole, part = draft("xx..xxx..x..", (0, 1, 2)), draft("..x....x....", (3, 4, 5))
    # Of the part's 4 comings and goings 2 are from the whole; of the whole's 5, 2 are to the part.
    assert tied(whole, part) == tied(part, whole) == 2 / 4
    apart = draft("............", (6, 7, 8))
    assert tied(whole, apart) == 0
    assert [one.features for one in unions([whole, part, apart])] == [(0, 1, 2, 3, 4, 5)]


def test_a_piece_of_another_automaton_is_no_automaton_of_its_own() -> None:
    whole = draft("xxxx..xxxx..", (0, 1, 2, 3))
    piece, apart = (
        replace(draft(sequence, (0, 1)), kind="pair")
        for sequence in ("xx....xx....", "xxxx..xxxx..")
    )
    assert is_part(piece, whole)
    assert not is_part(apart, whole)  # it is left for the outside, never for the rest of the whole
    assert not is_part(replace(piece, kind="loop"), whole)
    assert not is_part(replace(piece, kind="system"), whole)  # of a kind, overlap folds them
    assert rank([whole, piece]) == [whole]
    assert rank([whole, apart]) == [whole, apart]


def test_one_automaton_found_as_two_kinds_is_listed_once() -> None:
    chain, system = (worth(2, 1, 2, 3, 4, kind=kind) for kind in ("chain", "system"))
    assert rank([system, chain]) == [chain]
    better = worth(3, 1, 2, 3, 4, 5)
    assert rank([better, chain]) == [better]
    assert len(rank([worth(3, 1, 2, 3, 7, 8), chain])) == 2
    loops = [worth(1, 1, kind="loop"), worth(2, 1, 2, kind="pair")]
    assert len(rank(loops)) == 2


def worth(bits_saved: float, *features: int, kind: str = "system") -> Draft:
    """Give a draft that saves so many bits on a tenth of the text."""
    plain = draft("", features)
    return replace(plain, kind=kind, scores=plain.scores._replace(bits_saved=bits_saved))


def test_near_duplicates_stand_behind_the_best_of_them() -> None:
    best, near, nearer = worth(3, 1, 2, 3), worth(1, 3, 2), worth(2, 1, 2, 3, 4)
    other, again, pair = worth(2.5, 3, 7, 8), worth(0.5, 2, 1, 3), worth(2, 1, 2, kind="pair")
    ranked = rank([near, other, again, pair, best, nearer])
    assert [one.features for one in ranked if one.kind == "system"] == [{1, 2, 3}, {3, 7, 8}]
    assert ranked[0].variants == (
        Variant("system", (1, 2, 3, 4), 2, 0.1),
        Variant("system", (2, 3), 1, 0.1),
    )
    assert all(one.variants == () for one in ranked[1:])


def test_at_most_ten_near_duplicates_are_kept() -> None:
    drafts = [worth(20 - at, 1, 2, 3, 4, 5, 6, 7, 10 + at) for at in range(15)]
    (only,) = rank(drafts)
    assert [one.bits_saved for one in only.variants] == [20 - at for at in range(1, 11)]


def test_variants_and_descriptions_are_written_and_read_again(found: list[Found]) -> None:
    folded = [one for automaton in every(found) for one in automaton.variants]
    assert folded
    for automaton in every(found):
        values = [one.bits_saved * one.coverage for one in automaton.variants]
        assert values == sorted(values, reverse=True)
        assert {one.kind for one in automaton.variants} <= {automaton.kind}
        assert automaton.description.endswith(" of the text.")
    table = index_frame(found[0].automata)
    assert table["description"].to_list() == [one.description for one in found[0].automata]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_world_whose_features_are_shuffled_has_no_automaton(
    found: list[Found], tmp_path: Path, seed: int
) -> None:
    path = found[seed].world.path
    tokens = naive.permuted_within_documents(read_tokens(path), np.random.default_rng(seed))
    shuffled = write_run(
        tmp_path / "run",
        documents=read_documents(path),
        tokens={
            "doc_id": tokens.doc_ids,
            "window_id": tokens.window_ids,
            "token_id": tokens.token_ids,
        },
        indptr=tokens.indptr,
        features=tokens.features,
        acts=tokens.acts,
        promotions=tokens.promotions,
        vocabulary=read_vocabulary(path)["token_bytes"].to_list(),
        d_sae=read_manifest(path).d_sae,
    )
    automata = circuits.find_automata(circuits.build_graph(shuffled))
    assert [one.name for one in automata] == []
    write_automata(shuffled, automata)
    assert circuits.open_run(shuffled).automata == ()


def every(found: list[Found]) -> Iterator[FeatureAutomaton]:
    for one in found:
        yield from one.automata


def test_rows_of_every_automaton_sum_to_1(found: list[Found]) -> None:
    for automaton in every(found):
        for state in automaton.states:
            total = sum(step.probability for step in automaton.leaving(state.id))
            assert total == pytest.approx(1.0), automaton.name


def test_shares_of_tokens_are_of_their_arrow(found: list[Found]) -> None:
    for automaton in every(found):
        for step in automaton.transitions:
            shares = [token.share for token in step.tokens]
            assert shares == sorted(shares, reverse=True)
            assert 0 < sum(shares) <= 1 + 1e-9


def test_every_automaton_fits_the_format(found: list[Found]) -> None:
    for automaton in every(found):
        assert type(automaton).from_json(automaton.to_json()) == automaton


def test_names_are_unique_and_kinds_are_bounded(found: list[Found]) -> None:
    for one in found:
        names = [automaton.name for automaton in one.automata]
        assert len(set(names)) == len(names)
        for kind in KINDS:
            of_kind = [set(a.features) for a in one.automata if a.kind == kind]
            assert len(of_kind) <= MAX_PER_KIND
            for at, features in enumerate(of_kind):
                for other in of_kind[:at]:
                    smaller = min(len(features), len(other))
                    assert len(features & other) / smaller <= MAX_OVERLAP


def test_held_out_scores_are_near_the_training_ones(found: list[Found]) -> None:
    pairs = [(a.scores["retention"], a.scores["held_out_retention"]) for a in every(found)]
    gaps = [abs((seen or 0) - (unseen or 0)) for seen, unseen in pairs]
    assert np.median(gaps) < 0.05


def test_examples_show_the_state_firing(found: list[Found]) -> None:
    for automaton in every(found):
        for state in automaton.states:
            assert state.examples
            for example in state.examples:
                assert len(example.tokens) == len(example.values)
                assert example.values[example.focus] > 0


@cache
def small_run() -> Path:
    path = Path(mkdtemp()) / "run"
    planted_world(path, seed=5, n_tokens=12_000)
    return path


def test_the_same_run_gives_the_same_bytes() -> None:
    graph = circuits.build_graph(small_run())
    files = []
    for _ in range(2):
        write_automata(small_run(), circuits.find_automata(graph))
        folder = small_run() / "automata"
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]
    assert len(files[0]) > 2


def test_the_index_lists_automata_by_rank_and_old_files_go() -> None:
    graph = circuits.build_graph(small_run())
    automata = circuits.find_automata(graph)
    write_automata(small_run(), automata)
    write_automata(small_run(), automata[:2])
    folder = small_run() / "automata"
    assert sorted(path.stem for path in folder.glob("*.json")) == sorted(
        one.name for one in automata[:2]
    )
    index = pl.read_parquet(folder / "index.parquet")
    assert index["name"].to_list() == [one.name for one in automata[:2]]
    assert index["rank"].to_list() == [1, 2]
    assert index.columns[:10] == [
        "name", "title", "kind", "rank", "n_states", "n_features", "retention", "retention_lift",
        "bits_saved", "coverage",
    ]  # fmt: skip
    assert [one.name for one in circuits.open_run(small_run()).automata] == index["name"].to_list()


def test_no_automata_make_an_empty_index() -> None:
    assert index_frame([]).shape[0] == 0
    assert index_frame([]).schema == index_frame([]).clear().schema


def test_a_graph_of_no_run_says_so() -> None:
    graph = circuits.build_graph(small_run())
    orphan = replace(graph, run=None) if hasattr(graph, "__dataclass_fields__") else object()
    with pytest.raises(GraphError, match=r"belongs to no run; open one with circuits\.open_run"):
        circuits.find_automata(orphan)
