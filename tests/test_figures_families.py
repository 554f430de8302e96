"""The best unit of a family: chosen on one half, scored on the other, and written to the page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import shell
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.run import open_run
from figures import families
from figures.family_masks import Family, FamilyText, Labels
from figures.family_reading import (
    MOST_BYTES,
    DenseUnits,
    Reading,
    SparseUnits,
    read_documents,
    read_units,
)
from figures.family_scores import MIN_POSITIVES, TOKENS, family_rows
from figures.unit_scores import Firings, curves, memberships, told
from sae_core.errors import TextError
from sae_core.gather import gather
from sae_core.language_model import load_model
from sae_core.sae import load_sae

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

COLUMNS = dict.fromkeys(("family", "package", "source", "split"), pl.String)
BLOB = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"


def firings_of(acts: NDArray[np.float64]) -> Firings:
    rows = np.flatnonzero(acts > 0)
    return Firings(rows, acts[rows])


def naive_f1(yes: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return 2 * (yes & truth).sum() / (yes.sum() + truth.sum())


def naive_auc(acts: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    pairs = acts[truth][:, None] - acts[~truth][None]
    return float(((pairs > 0) + (pairs == 0) / 2).mean())


def write_table(path: Path, rows: list[tuple[str, str, str, str, bytes]]) -> Path:
    schema = COLUMNS | {"text": pl.Binary}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(path)
    return path


def world(acts: NDArray[np.float32], truth: NDArray[np.bool_]) -> tuple[Reading, Labels]:
    """One family on two documents, a half each; acts are (n_units, n_tokens)."""
    n = acts.shape[1] // 2
    documents = pl.DataFrame({"family": ["c", "c"], "half": [0, 1]})
    text = FamilyText(documents, np.array([0, n, 2 * n]), np.arange(2 * n) % 10, np.arange(2 * n))
    units = DenseUnits("neurons", (acts.astype(np.float16),))
    return Reading(text, (units,)), Labels((Family("a", "pattern", ""),), truth[None])


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_f1_threshold_and_auc_are_those_of_trying_everything(
    seed: int, n_tokens: int, n_values: int
) -> None:
    rng = np.random.default_rng(seed)
    acts = rng.integers(0, n_values + 1, n_tokens) / 2  # many ties, many zeros
    truth = rng.random((3, n_tokens)) < [[0.1], [0.5], [0.9]]
    found = curves(firings_of(acts), memberships(truth))
    for family in range(3):
        tried = [naive_f1(acts > cut, truth[family]) for cut in {0.0, *acts} if (acts > cut).any()]
        expected = max(tried, default=0.0) if truth[family].any() else 0.0
        assert found.f1[family] == pytest.approx(expected)
        if expected:
            now = told(firings_of(acts), found.threshold[family], truth[family])
            assert now.f1 == pytest.approx(expected)
            assert now.f1 == pytest.approx(2 / (1 / now.precision + 1 / now.recall))
        if 0 < truth[family].sum() < n_tokens:
            assert found.auc[family] == pytest.approx(naive_auc(acts, truth[family]))
        else:
            assert np.isnan(found.auc[family])


def test_the_sets_of_families_give_the_families_back() -> None:
    truth = np.random.default_rng(0).random((21, 500)) < 0.2
    found = memberships(truth)
    np.testing.assert_array_equal([found.row(family) for family in range(21)], truth)
    np.testing.assert_array_equal(found.n_positive, truth.sum(axis=1))


def test_the_unit_is_chosen_on_the_first_half_and_scored_on_the_second() -> None:
    truth = np.tile(np.arange(400) % 2 == 0, 2)
    acts = np.zeros((3, 800), np.float32)
    acts[0, :400] = 0.5 * truth[:400]  # perfect on the first half, silent on the second
    acts[1, 400:] = truth[400:]  # the other way round
    acts[2] = 1
    (row,) = family_rows(*world(acts, truth))
    score = row.scores["neurons"]
    assert (row.n_chosen, row.n_scored, row.n_documents) == (200, 200, 1)
    assert (score.unit, score.f1_chosen, score.f1, score.recall) == (0, 1.0, 0.0, 0.0)
    assert (score.auc_unit, score.auc) == (0, 0.5)


def test_the_threshold_of_the_first_half_is_kept() -> None:
    truth = np.tile(np.arange(600) % 3 == 0, 2)
    acts = np.where(truth, 2.0, 1.0)[None].astype(np.float32)
    acts[0, 600:][truth[600:]] = np.tile([2.0, 0.5], 100)
    (row,) = family_rows(*world(acts, truth))
    score = row.scores["neurons"]
    assert (score.threshold, score.f1_chosen) == (1.0, 1.0)
    assert (score.precision, score.recall, score.f1_firing) == (1.0, 0.5, 0.5)


def test_of_equal_units_the_lowest_is_taken() -> None:
    truth = np.tile(np.arange(400) % 2 == 0, 2)
    acts = np.stack([0 * truth, truth, truth]).astype(np.float32)
    (row,) = family_rows(*world(acts, truth))
    assert row.scores["neurons"].unit == row.scores["neurons"].auc_unit == 1


def test_bare_tokens_are_the_best_set_of_the_first_half() -> None:
    token = np.arange(1000) % 10  # half 0, then half 1
    truth = (token < 3) | ((token == 3) & (np.arange(1000) % 20 == 3)) | (np.arange(1000) >= 990)
    (row,) = family_rows(*world(np.ones((1, 1000), np.float32), truth))
    score = row.scores[TOKENS]
    yes = token[500:] < 4
    assert score.unit is None
    assert score.f1_chosen == pytest.approx(naive_f1(token[:500] < 4, truth[:500]), abs=1e-4)
    assert score.f1 == pytest.approx(naive_f1(yes, truth[500:]), abs=1e-4)


@pytest.mark.parametrize("n_positive", [MIN_POSITIVES - 1, 2000 - MIN_POSITIVES + 1])
def test_a_family_of_too_few_or_too_many_tokens_is_not_scored(n_positive: int) -> None:
    truth = np.tile(np.arange(2000) < n_positive, 2)
    (row,) = family_rows(*world(np.ones((1, 4000), np.float32), truth))
    assert row.scores == {}


def test_documents_are_held_out_cut_and_parted_within_their_packages(tmp_path: Path) -> None:
    rows = [
        ("c", package, f"{at}.h", split, f"int {package}{at};\n".encode() * 9_000)
        for package in ("ant", "bee")
        for at in range(4)
        for split in ("train", "validation")
    ]
    rows += [("html", "cat", f"{at}.html", "validation", b"<p>%d\n" % at * 100) for at in range(9)]
    table = write_table(tmp_path / "documents.parquet", rows)
    found = read_documents(table, {"html": 1_500}, 10**6)
    assert (
        found.filter(pl.col("family") == "html").height == 3
    )  # 600 bytes each, the last one whole
    code = found.filter(pl.col("family") == "c")
    assert code.height == 8
    assert code["text"].bin.size().max() <= MOST_BYTES
    assert code["text"].bin.ends_with(b";\n").all()
    assert code.group_by("package").agg(pl.col("half").sum())["half"].to_list() == [2, 2]
    write_table(tmp_path / "none.parquet", [row for row in rows if row[3] == "train"])
    with pytest.raises(TextError, match="no document of the split 'validation'"):
        read_documents(tmp_path / "none.parquet", {}, 1)


def test_a_table_without_splits_is_held_out_as_a_whole(tmp_path: Path) -> None:
    rows = [("c", "ant", f"{at}.h", "train", b"int x%d;\n" % at) for at in range(3)]
    table = write_table(tmp_path / "sample.parquet", rows)
    pl.read_parquet(table).drop("split").write_parquet(table)
    found = read_documents(table, {}, 10**6)
    assert sorted(found["text"]) == [b"int x0;\n", b"int x1;\n", b"int x2;\n"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, two dictionaries, and a table of pages, code with capitals, and base64."""
    folder = tmp_path_factory.mktemp("families")
    tiny.write_model(folder / "model")
    shell.write_sae(folder / "one" / "sae")
    shell.write_sae(folder / "other" / "sae", seed=1)
    shell.write_sae(folder / "two", seed=1)
    rows = []
    for at in range(4):
        page = f'<div class="a{at}">\n<span>gr\u00fcn {at} alpha beta</span></div>\n'
        code = f"the MAX_VALUE = MIN_VALUE_{at} + {at}\n"
        pages = [("html", page * 8), ("c", code * 20), ("base64", f"{at}{BLOB[at:]}=\n" * 4)]
        rows += [
            (family, "made", f"{family}/{at}", "validation", text.encode())
            for family, text in pages
        ]
    write_table(folder / "documents.parquet", rows)
    return folder


@pytest.fixture(scope="module")
def found(parts: Path) -> dict[str, Any]:
    saes = [str(parts / "one" / "sae"), str(parts / "two")]
    return families.measure(parts / "documents.parquet", saes, model=str(parts / "model"))


def test_the_units_are_those_that_gather_writes(parts: Path, tmp_path: Path) -> None:
    model, sae = load_model(parts / "model"), load_sae(parts / "two")
    documents = read_documents(parts / "documents.parquet", {}, 10**6)
    reading = read_units(model, [sae], documents)
    table = tmp_path / "sorted.parquet"
    documents.write_parquet(table)
    for units, one in zip(reading.units, (sae, load_sae("neurons", model=model)), strict=True):
        out = tmp_path / f"run-{units.n_units}"
        gather([table], out=out, model=model, sae=one)
        tokens = open_run(out).tokens()
        np.testing.assert_array_equal(reading.text.token_ids, tokens.token_ids)
        np.testing.assert_array_equal(reading.text.byte_end, tokens.byte_end)
        rows = np.repeat(np.arange(len(tokens.token_ids)), np.diff(tokens.indptr))
        tolerance = 1e-6 if isinstance(units, SparseUnits) else 1e-3
        for unit in range(units.n_units):
            firings = units.firings(unit)
            here = tokens.features == unit
            np.testing.assert_array_equal(firings.rows, rows[here])
            np.testing.assert_allclose(firings.acts, tokens.acts[here], rtol=tolerance, atol=1e-7)


def test_families_of_the_text_are_scored_by_every_reader(found: dict[str, Any]) -> None:
    assert found["readers"] == ["sae", "two", "neurons", "tokens"]
    scored = {(row["family"], row["kind"]) for row in found["families"] if row["scores"]}
    assert {("html", "document"), ("HTML tags", "pattern")} <= scored
    assert {("ALL_CAPS snake case", "pattern"), ("base64 strings", "pattern")} <= scored
    assert ("LaTeX commands", "pattern") not in scored
    for row in found["families"]:
        for reader, score in row["scores"].items():
            assert 0 <= score["f1"] <= 1, (row["family"], reader)
            assert score["auc"] == score["auc"], "not a number"
    made = found["made_from"]
    assert made["n_tokens"] == sum(made["n_tokens_by_family"].values())
    assert set(made["saes"]) == {"sae", "two"}


def test_the_page_is_remade_in_place(found: dict[str, Any], tmp_path: Path) -> None:
    families.write(found, tmp_path)
    page = tmp_path / "families.md"
    first = page.read_text()
    page.write_text(first.replace("# Families", "# Families\n\nWords of a person."))
    families.write(found, tmp_path)
    assert page.read_text() == first.replace("# Families", "# Families\n\nWords of a person.")
    assert json.loads((tmp_path / "families.json").read_text()) == found
    assert "| HTML tags | 2 |" in first
    assert "Cyrillic (proxy, 0)" in first


def test_the_short_table_is_made_of_the_file(found: dict[str, Any]) -> None:
    text = families.families_table(json.loads(json.dumps(found)))
    assert "feature of two | neuron | set of tokens |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| ALL_CAPS snake case")]
    (row,) = [row for row in found["families"] if row["family"] == "ALL_CAPS snake case"]
    assert f"| {row['scores']['two']['f1']:.2f} |" in line
    assert "Arabic" not in text


def test_the_counts_say_how_many_families_one_unit_tells() -> None:
    def row(kind: str, *f1s: float) -> dict[str, Any]:
        scores = {
            name: {"f1": f1} for name, f1 in zip(("A/0", "neurons", "tokens"), f1s, strict=True)
        }
        return {"kind": kind, "scores": scores}

    rows = [
        row("proxy", 0.9, 0.5, 0.1),
        row("pattern", 0.8, 0.85, 0.8),
        {"kind": "proxy", "scores": {}},
    ]
    text = families.counts_text({"readers": ["A/0", "neurons", "tokens"], "families": rows})
    first, second, _ = text.splitlines()
    assert "A/0 has an F1 of 0.8 or more in 2 of 2 families (1 of 1 by proxy, 1 of 1 by" in first
    assert first.endswith("above the best neuron's in 1.")
    assert "neuron has an F1 of 0.8 or more in 1 of 2 families" in second


def test_two_dictionaries_of_one_name_are_refused(parts: Path) -> None:
    saes = [str(parts / "one" / "sae"), str(parts / "other" / "sae")]
    with pytest.raises(ValueError, match="dictionaries of different names"):
        families.measure(parts / "documents.parquet", saes, model=str(parts / "model"))
