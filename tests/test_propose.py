"""Pairs and chains are found whole where their states are split over several features."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import polars as pl

from circuits.propose import propose

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def edges(
    pairs: Iterable[tuple[int, int]], n_promoted: int = 100, nats: float = 4.0
) -> pl.DataFrame:
    """Give strong edges that all carry the same flow."""
    rows = sorted(set(pairs))
    return pl.DataFrame(
        {"source": [i for i, _ in rows], "target": [j for _, j in rows]},
        schema={"source": pl.UInt32, "target": pl.UInt32},
    ).with_columns(
        pl.lit(2.0).alias("score"),
        pl.lit(20.0).alias("lift"),
        pl.lit(9.0).alias("burst_ratio"),
        pl.lit(0.3).alias("p_target_given_promoted"),
        pl.lit(n_promoted).cast(pl.Int64).alias("n_promoted"),
        pl.lit(100).cast(pl.Int64).alias("n_pairs"),
        pl.lit(nats).alias("promoted_nats"),
    )


def steps(places: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Give every step from a feature of a place to one of the next."""
    return [(i, j) for here, there in pairwise(places) for i in here for j in there]


def groups_of(kind: str, table: pl.DataFrame) -> list[tuple[tuple[int, ...], ...]]:
    return [one.groups for one in propose(table, 20) if one.kind == kind]


def test_a_pair_whose_states_are_split_over_features_is_one_pair() -> None:
    first, second = (0, 1, 2), (3, 4)
    found = groups_of("pair", edges(steps([first, second]) + steps([second, first])))
    assert found == [(first, second)]


def test_a_chain_whose_places_are_split_four_ways_is_one_chain() -> None:
    places = ((0, 1, 2, 3), (4, 5, 6, 7), (8,), (9, 10, 11, 12))
    assert groups_of("chain", edges(steps(places))) == [places]


def test_features_that_get_the_same_and_lead_elsewhere_have_two_roles() -> None:
    table = edges([(0, 1), (0, 2), (1, 3), (2, 4), (3, 0), (4, 0)])
    assert all(not {1, 2} <= set(group) for one in propose(table, 20) for group in one.groups)


def test_pairs_of_single_features_are_found_as_before() -> None:
    assert groups_of("pair", edges([(0, 1), (1, 0), (1, 2), (2, 3)])) == [((0,), (1,))]


def test_no_strong_edge_gives_no_candidate() -> None:
    weak = edges([(0, 1), (1, 0)]).with_columns(pl.lit(0.1).alias("score"))
    assert propose(weak, 20) == []


def test_neighbours_alike_two_by_two_are_no_role_where_the_ends_differ() -> None:
    row = [[(i, i + 10) for i in range(k, k + 6)] for k in range(8)]
    links = [(k, target) for k, of in enumerate(row) for _, target in of]
    groups = [group for one in propose(edges(links), 30) for group in one.groups]
    assert all(not {0, 7} <= set(group) for group in groups)


def test_one_that_fires_where_another_does_but_gives_nothing_to_what_follows_is_left_out() -> None:
    ring = edges([(0, 1), (1, 2), (2, 3), (3, 0)])
    looks_on = pl.concat([ring, edges([(0, 4)]), edges([(4, 2)], nats=0.5)])
    found = [one for one in propose(looks_on, 20) if one.kind == "system"]
    assert found
    assert all(4 not in one.features for one in found)


def test_a_set_is_closed_where_hardly_any_flow_leaves_it() -> None:
    ring, other = ([(at, at // 4 * 4 + (at + 1) % 4) for at in range(k, k + 4)] for k in (0, 4))
    away = [*other, (0, 4), (2, 6)]
    for more, closed in (([], True), (away, False)):
        found = propose(edges(ring + more), 20)
        assert {one.closed for one in found if set(one.features) == {0, 1, 2, 3}} == {closed}
