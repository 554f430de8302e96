"""Ways to group features find what they should in small graphs, and scores tell good from bad."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from benchmarks.discovery_rivals import RIVALS, Rival, Setting, links_of
from discovery_scores import (
    Matches,
    adjusted_rand,
    false_share,
    judged,
    mark,
    matches,
    state_agreement,
)
from planted import PlantedWorld

from circuits.automaton import FeatureAutomaton, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BY_NAME = {rival.name: rival for rival in RIVALS}
LOOP, PAIR, RING, LINE = {0}, {1, 2}, {3, 4, 5, 6}, {7, 8, 9, 10, 11}
VALUES = {
    "strongly connected cores": 0.0,
    "almost-invariant sets": 0.8,
    "Louvain": 1.0,
    "Leiden": 1.0,
    "Infomap": 2.0,
    "local growth": 0.2,
    "paths": 0.5,
}


def table(shares: dict[tuple[int, int], float], score: float = 1.0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "source": [i for i, _ in shares],
            "target": [j for _, j in shares],
            "score": [score] * len(shares),
            "p_target_given_source": list(shares.values()),
        },
        schema_overrides={"source": pl.UInt32, "target": pl.UInt32},
    )


def four_machines() -> pl.DataFrame:
    """Give a loop, a pair, a ring and a line, each with weak edges to the next."""
    shares = {(0, 0): 0.9, (1, 2): 0.9, (2, 1): 0.9}
    shares |= {(3, 4): 0.9, (4, 5): 0.9, (5, 6): 0.9, (6, 3): 0.9}
    shares |= {(i, i + 1): 0.9 for i in range(7, 11)}
    shares |= {(0, 1): 0.02, (2, 3): 0.02, (6, 7): 0.02}
    return table(shares)


def found_by(name: str, edges: pl.DataFrame) -> list[set[int]]:
    rival = BY_NAME[name]
    if not rival.is_installed():
        pytest.skip(f"{rival.package} is not installed")
    return [set(one) for one in rival.sets(edges, Setting(0.0, VALUES[name]))]


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("strongly connected cores", [LOOP, PAIR, RING]),
        ("almost-invariant sets", [LOOP, PAIR, RING, LINE]),
        ("Louvain", [LOOP, PAIR, RING, LINE]),
        ("Leiden", [LOOP, PAIR, RING, LINE]),
        ("Infomap", [LOOP, PAIR, RING, LINE]),
        ("local growth", [RING, LINE]),  # the loop and the pair lead to others, though seldom
        ("paths", [RING, LINE]),
    ],
)
def test_each_way_finds_what_it_is_made_for(name: str, sets: list[set[int]]) -> None:
    found = found_by(name, four_machines())
    assert all(one in found for one in sets), found


def test_cores_miss_lines() -> None:
    found = found_by("strongly connected cores", four_machines())
    assert not any(one & LINE for one in found)


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_no_edge_gives_no_set(rival: Rival) -> None:
    if rival.is_installed():
        assert rival.sets(four_machines(), Setting(2.0, VALUES[rival.name])) == []


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_the_chosen_setting_was_tried(rival: Rival) -> None:
    assert rival.chosen in set(rival.settings())


def test_single_features_are_sets_only_where_they_lead_back_to_themselves() -> None:
    edges = table({(0, 0): 0.9, (1, 2): 0.9})
    assert found_by("strongly connected cores", edges) == [{0}]


def test_links_hold_shares_from_source_to_target() -> None:
    links = links_of(table({(5, 2): 0.25, (2, 9): 0.5}))
    assert links.features == (2, 5, 9)
    assert np.array_equal(links.shares, [[0, 0, 0.5], [0.25, 0, 0], [0, 0, 0]])


def test_a_grown_set_stops_where_conductance_would_rise() -> None:
    clique = {(i, j): 0.5 for i in range(4) for j in range(4) if i != j}
    other = {(i + 4, j + 4): 0.5 for i, j in clique}
    assert found_by("local growth", table(clique | other | {(3, 4): 0.1})) == [
        {0, 1, 2, 3},
        {4, 5, 6, 7},
    ]


def world(
    states: Sequence[Sequence[Iterable[int]]], kinds: Sequence[str], identity: Iterable[int] = ()
) -> PlantedWorld:
    parts = [[frozenset(of) for of in machine] for machine in states]
    return PlantedWorld(
        path=Path(),
        truth_edges=frozenset(),
        groups=[frozenset().union(*of) for of in parts],
        kinds=list(kinds),
        states=parts,
        context=frozenset(),
        identity=frozenset(identity),
    )


SMALL = world(
    [[{0}], [{1}, {2, 3}], [{4}, {5}, {6}], [{7}, {8}, {9}, {10}]],
    ["loop", "pair", "system", "chain"],
    identity={20, 21},
)


def automaton(states: Sequence[Sequence[int]]) -> FeatureAutomaton:
    made = tuple(State(at, "", tuple(features), ()) for at, features in enumerate(states))
    return FeatureAutomaton("one", "one", "system", {}, made, (), {})


def test_overlaps_are_with_the_best_set_and_by_kind() -> None:
    found = matches(SMALL, [{0, 20}, {1, 2}, {1}, {4, 5, 6, 30, 31, 32}, {11, 12}, {20, 21}])
    assert found.overlaps == {"loop": 1.0, "pair": 2 / 3, "system": 0.5, "chain": 0.0}
    assert found.n_sets == 5  # that of single tokens alone counts neither way
    assert found.n_false == 2  # {1} is a third of the pair, {11, 12} nothing


def test_sets_of_single_tokens_alone_are_not_judged() -> None:
    assert judged(SMALL, [{20}, {0, 20}]) == [frozenset({0})]


def test_a_mark_asks_for_overlap_and_for_few_false_sets() -> None:
    overlaps = {"loop": 1.0, "pair": 0.5, "system": 0.5, "chain": 0.0}
    assert mark([Matches(overlaps, 4, 2)]) == pytest.approx(0.5)
    assert mark([Matches(overlaps, 4, 0)]) == pytest.approx(2 / 3)
    assert mark([Matches(overlaps, 4, 0)], ["chain"]) == 0


def test_false_sets_are_pooled_and_no_set_is_as_bad_as_false_ones() -> None:
    nothing = dict.fromkeys(("loop", "pair", "system", "chain"), 0.0)
    assert false_share([Matches(nothing, 9, 1), Matches(nothing, 1, 1)]) == 0.2
    assert false_share([Matches(nothing, 0, 0)]) == 1.0


def test_adjusted_rand_is_1_where_groups_agree_and_about_0_by_chance() -> None:
    assert adjusted_rand([0, 0, 1, 2], [5, 5, 9, 1]) == 1.0
    assert adjusted_rand([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(-0.5)
    assert adjusted_rand([0, 1, 2], [0, 1, 2]) == 1.0  # all apart both ways
    assert adjusted_rand([0, 1, 2], [0, 0, 2]) == 0.0
    # Hubert and Arabie's index by hand: pairs together in both 2, in one 4, in the other 3, of 15
    assert adjusted_rand([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 2]) == pytest.approx(
        (2 - 16 / 15) / (4 - 16 / 15)
    )
    rng = np.random.default_rng(0)
    chance = [adjusted_rand(rng.integers(3, size=30), rng.integers(3, size=30)) for _ in range(200)]
    assert np.mean(chance) == pytest.approx(0, abs=0.02)


def test_states_are_compared_with_those_of_the_best_automaton() -> None:
    found = [automaton([[1, 2], [3]]), automaton([[4], [5], [6, 30]]), automaton([[7], [8, 9]])]
    agreement = state_agreement(SMALL, found)
    assert set(agreement) == {"pair", "system", "chain"}
    assert agreement["pair"] == [adjusted_rand([0, 1, 1], [0, 0, 1])]
    assert agreement["system"] == [1.0]
    assert agreement["chain"] == [0.0]  # two of its states in one; the tenth is missing, alone


def test_a_machine_that_nothing_overlaps_has_every_feature_alone() -> None:
    assert state_agreement(SMALL, [])["pair"] == [0.0]
