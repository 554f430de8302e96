"""Measured effects in the graph: the best edges get theirs, the rest stay null, the rest is refused."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import planted
import polars as pl
import pytest
import shell
import tiny

import circuits
from circuits.effects import edges_by_decile, with_effects
from sae_core import measure_effects
from sae_core.run_effects import N_DRAWS

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a dictionary, texts, and a run of them."""
    folder = shell.write_parts(tmp_path_factory.mktemp("causal"))
    assert gather(folder, folder / "run").exit_code == 0
    return folder


def gather(parts: Path, out: Path, *options: object) -> Result:
    given = ("--model", parts / "model", "--sae", parts / "sae", *options)
    return shell.invoke("gather", parts / "texts", "-o", out, *given)


def edges_of(run: Path) -> pl.DataFrame:
    return pl.read_parquet(run / "graph" / "edges.parquet")


def copy_of(run: Path, path: Path) -> Path:
    return shutil.copytree(run, path)


def test_the_best_edges_get_their_effect_and_the_others_stay_null(
    parts: Path, tmp_path: Path
) -> None:
    run = copy_of(parts / "run", tmp_path / "run")
    plain = circuits.build_graph(run).edges
    assert plain["causal"].null_count() == len(plain) > 8
    result = shell.invoke("graph", run, "--causal", 8)
    assert result.exit_code == 0, result.stderr
    assert f"measured 8 effects, 1,000 draws a source; 8 of {len(plain):,} edges" in result.stderr
    edges = edges_of(run)
    assert edges.columns == plain.columns
    assert edges.drop("causal", "causal_stderr").equals(plain.drop("causal", "causal_stderr"))
    for name in ("causal", "causal_stderr"):
        assert edges[name].is_null().to_list() == [at >= 8 for at in range(len(edges))]
    assert edges["causal"].head(8).abs().max() <= 1  # type: ignore[operator]
    assert (edges["causal_stderr"].head(8) > 0).any()


def test_what_was_measured_is_not_measured_again(parts: Path, tmp_path: Path) -> None:
    run = copy_of(parts / "run", tmp_path / "run")
    assert shell.invoke("graph", run, "--causal", 8).exit_code == 0
    before, first = shell.digests(run), edges_of(run)
    again = shell.invoke("graph", run, "--causal", 8)
    assert "complete; 8 of" in again.stderr
    assert shell.digests(run) == before
    more = shell.invoke("graph", run, "--causal", 10)
    assert "measured 2 effects" in more.stderr
    assert edges_of(run)["causal"].count() == 10
    assert edges_of(run).head(8).equals(first.head(8))
    assert shell.invoke("graph", run).exit_code == 0
    assert edges_of(run)["causal"].count() == 0
    assert "complete; 8 of" in shell.invoke("graph", run, "--causal", 8).stderr
    assert edges_of(run).equals(first)


def test_two_runs_of_the_same_command_give_the_same_bytes(parts: Path, tmp_path: Path) -> None:
    runs = [copy_of(parts / "run", tmp_path / name) for name in "ab"]
    for run in runs:
        assert shell.invoke("graph", run, "--causal", 5).exit_code == 0
    assert shell.digests(runs[0]) == shell.digests(runs[1])


def test_effects_of_other_text_are_not_taken(parts: Path, tmp_path: Path) -> None:
    run = copy_of(parts / "run", tmp_path / "run")
    assert shell.invoke("graph", run, "--causal", 5).exit_code == 0
    kept = tmp_path / "kept"
    shutil.copytree(run / "graph", kept)
    other = tmp_path / "other"
    assert gather(parts, other, "--max-tokens", 3000).exit_code == 0
    shutil.copytree(kept, other / "graph")
    assert "measured 5 effects" in shell.invoke("graph", other, "--causal", 5).stderr


def test_more_edges_than_there_are_measures_all(parts: Path, tmp_path: Path) -> None:
    run = copy_of(parts / "run", tmp_path / "run")
    result = shell.invoke("graph", run, "--causal", 100_000)
    assert result.exit_code == 0, result.stderr
    assert edges_of(run)["causal"].null_count() == 0


def test_a_run_without_activations_is_refused_with_what_is_needed(
    parts: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert gather(parts, run, "--no-keep-acts").exit_code == 0
    result = shell.invoke("graph", run, "--causal", 5)
    assert result.exit_code == 1
    assert "holds no activations" in result.stderr
    assert "gather again with --keep-acts" in result.stderr
    assert not (run / "graph").exists()


def test_a_run_from_elsewhere_is_refused(tmp_path: Path) -> None:
    hidden = planted.planted_world(tmp_path / "run", n_tokens=2000)
    result = shell.invoke("graph", hidden.path, "--causal", 5)
    assert result.exit_code == 1
    assert "was made elsewhere and names no model" in result.stderr
    assert not (hidden.path / "graph").exists()


def test_a_model_or_dictionary_that_is_gone_or_changed_is_refused(tmp_path: Path) -> None:
    tiny.write_model(tmp_path / "model")
    shell.write_sae(tmp_path / "sae")
    shell.write_text(tmp_path / "texts" / "0.html", 9)
    run = tmp_path / "run"
    assert gather(tmp_path, run).exit_code == 0
    shell.write_sae(tmp_path / "sae", seed=1)
    changed = shell.invoke("graph", run, "--causal", 5)
    assert changed.exit_code == 1
    assert "has changed since" in changed.stderr
    shutil.rmtree(tmp_path / "model")
    gone = shell.invoke("graph", run, "--causal", 5)
    assert gone.exit_code == 1
    assert "there is no model" in gone.stderr


@pytest.mark.parametrize("number", ["0", "-3", "many"])
def test_a_number_of_edges_that_is_none_is_wrong_usage(parts: Path, number: str) -> None:
    result = shell.invoke("graph", parts / "run", "--causal", number)
    assert result.exit_code == 2
    assert "--causal" in result.stderr


def test_edges_of_every_decile_can_be_measured_from_python(parts: Path, tmp_path: Path) -> None:
    run = copy_of(parts / "run", tmp_path / "run")
    graph = circuits.build_graph(
        run, measure=lambda edges: measure_effects(run, edges_by_decile(edges, 1), n_draws=50)
    )
    measured = graph.edges["causal"].is_not_null().to_numpy()
    assert measured.sum() == 10
    tenths = [at * 10 // len(measured) for at in measured.nonzero()[0]]
    assert tenths == list(range(10))
    assert N_DRAWS > 50


def test_deciles_are_told_and_chosen_edges_keep_their_order() -> None:
    ids = {"source": pl.Series(range(25), dtype=pl.UInt32)}
    edges = pl.DataFrame(ids).with_columns(pl.lit(7, pl.UInt32).alias("target"))
    chosen = edges_by_decile(edges, 2, seed=4)
    assert chosen["decile"].to_list() == [1 + at // 2 for at in range(20)]
    assert chosen["source"].is_sorted()
    assert edges_by_decile(edges, 99)["source"].to_list() == list(range(25))
    assert edges_by_decile(edges.clear(), 2).is_empty()
    with pytest.raises(ValueError, match="n_each must be >= 1 edges of each tenth, got 0"):
        edges_by_decile(edges, 0)


def test_effects_that_do_not_fit_are_refused() -> None:
    row = {"source": [1], "target": [2], "causal": [0.5], "causal_stderr": [0.1]}
    edges = pl.DataFrame(row, schema_overrides={"source": pl.UInt32, "target": pl.UInt32})
    assert with_effects(edges, pl.DataFrame(row)).equals(edges)
    with pytest.raises(ValueError, match="effects lack the column 'causal_stderr'"):
        with_effects(edges, edges.drop("causal_stderr"))
    with pytest.raises(ValueError, match="effects hold an edge twice"):
        with_effects(edges, pl.concat([edges, edges]))


def test_fewer_than_two_draws_are_refused(parts: Path) -> None:
    edges = pl.DataFrame({"source": [1], "target": [2]})
    with pytest.raises(ValueError, match="n_draws must be >= 2, for a standard error, got 1"):
        measure_effects(parts / "run", edges, n_draws=1)
