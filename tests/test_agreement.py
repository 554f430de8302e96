"""Measured effects of arrows, by hand; the means are of edges weighted by their pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
import shell
from drawn import html_system
from paired_run import file_of, found_in, write_paired

import circuits
from circuits.agreement import AGREEMENT, with_effects

if TYPE_CHECKING:
    from pathlib import Path

    from circuits.automaton import FeatureAutomaton

# States of html_system: 0 has features 20 and 311, 1 has 0, 2 has 408 and 12, 3 has 30 and 494.
Row = tuple[int, int, int, float | None, float | None]


def plain() -> FeatureAutomaton:
    whole = html_system()
    return replace(whole, transitions=tuple(replace(s, causal=None) for s in whole.transitions))


def measured(*rows: Row) -> FeatureAutomaton:
    schema = {
        "source": pl.UInt32, "target": pl.UInt32, "n_pairs": pl.Int64, "causal": pl.Float64,
        "causal_stderr": pl.Float64,
    }  # fmt: skip
    return with_effects(plain(), pl.DataFrame(rows, schema=schema, orient="row"))


def effects(automaton: FeatureAutomaton) -> dict[tuple[int, int | str], float]:
    steps = automaton.transitions
    return {(s.source, s.target): s.causal for s in steps if s.causal is not None}


def test_an_arrow_has_the_mean_of_its_edges_weighted_by_pairs() -> None:
    rows: list[Row] = [(20, 0, 30, 0.5, 0.01), (311, 0, 10, 0.1, 0.01), (0, 311, 10, 9.0, 0.01)]
    found = measured(*rows, (20, 999, 10, 9.0, 0.01), (20, 0, 99, None, None))
    assert effects(found) == pytest.approx({(0, 1): (30 * 0.5 + 10 * 0.1) / 40})


def test_edges_within_a_state_are_its_arrow_to_itself() -> None:
    found = measured((30, 30, 10, 0.2, 0.01), (494, 30, 30, 0.4, 0.01))
    assert effects(found) == pytest.approx({(3, 3): 0.35})


def test_agreement_is_the_share_of_measured_main_arrows_that_are_surely_positive() -> None:
    found = measured(
        (20, 0, 10, 0.21, 0.1),  # 0-1, probability 0.91: 2.1 standard errors
        (0, 12, 10, 0.19, 0.1),  # 1-2, 0.38: 1.9 standard errors
        (0, 30, 10, -5.0, 0.1),  # 1-3, 0.47: negative
        (30, 494, 10, 0.3, 0.1),  # 3-3, 0.62: positive
        (12, 20, 10, -5.0, 0.1),  # 2-0, 0.01: no main arrow
    )
    assert found.scores[AGREEMENT] == 2 / 4
    assert effects(found)[2, 0] == -5.0


def test_errors_of_several_edges_shrink_as_those_of_a_mean() -> None:
    one: Row = (20, 0, 10, 0.18, 0.1)
    assert measured(one).scores[AGREEMENT] == 0  # 1.8 standard errors
    assert measured(one, (311, 0, 10, 0.18, 0.1)).scores[AGREEMENT] == 1  # 1.8 x sqrt(2)


def test_where_nothing_was_measured_agreement_is_null() -> None:
    for found in (measured(), measured((20, 0, 10, None, None), (12, 20, 10, 1.0, 0.1))):
        assert AGREEMENT in found.scores
        assert found.scores[AGREEMENT] is None


def test_measured_effects_of_a_run_reach_its_automata(tmp_path: Path) -> None:
    run = write_paired(tmp_path / "run")
    found_in(run)
    assert "causal_agreement: not measured" in shell.invoke("show", run, file_of(run).stem).stdout
    circuits.build_graph(
        run,
        measure=lambda edges: edges.select("source", "target").with_columns(
            causal=pl.lit(0.25), causal_stderr=pl.lit(0.01)
        ),
    )
    shell.invoke("automata", run)
    (automaton,) = circuits.open_run(run).automata
    assert automaton.scores[AGREEMENT] == 1.0
    assert set(effects(automaton).values()) == {0.25}
    assert "causal_agreement: 1\n" in shell.invoke("show", run, automaton.name).stdout
