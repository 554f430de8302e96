"""The truth of a run: which packages are scored, and runs of neurons beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import shell

from circuits.run import open_run
from circuits.truth_texts import tables_of, truth_text
from sae_core.errors import GraphError
from sae_core.run_writer import write_run

if TYPE_CHECKING:
    from pathlib import Path

N_TOKENS = 60
SOURCES = ["pages/ant/a.txt", "pages/bee/b.txt", "pages/cat/c.txt", "pages/dog/d.txt"]
VOCABULARY = [b"a", "\u00e9".encode(), b"\xc3"]


def write(out: Path, sources: list[str], *, cut: int | None = None) -> Path:
    """Write a run of one feature a vocabulary token; document `cut` lacks its last token."""
    rng = np.random.default_rng(0)
    doc_ids = np.repeat(np.arange(len(sources)), N_TOKENS)
    token_ids = rng.integers(3, size=len(doc_ids))
    if cut is not None:
        keep = np.arange(len(doc_ids)) != (cut + 1) * N_TOKENS - 1
        doc_ids, token_ids = doc_ids[keep], token_ids[keep]
    n = len(token_ids)
    return write_run(
        out,
        documents=sources,
        tokens={"doc_id": doc_ids, "token_id": token_ids},
        vocabulary=VOCABULARY,
        indptr=np.arange(n + 1),
        features=token_ids,
        acts=np.ones(n),
        promotions=np.zeros(n),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("truth") / "run", SOURCES)


def test_only_scores_the_packages_named(run: Path) -> None:
    options = ("--kind", "utf8", "--all-documents", "--json")
    result = shell.invoke("truth", run, *options, "--only", "bee", "--only", "dog")
    rows = shell.rows_of(result)
    assert {row["n_tokens"] for row in rows} == {2 * N_TOKENS}
    whole = shell.rows_of(shell.invoke("truth", run, *options))
    assert {row["n_tokens"] for row in whole} == {4 * N_TOKENS}
    assert list(rows[0]) == [
        "what", "accuracy", "macro_f1", "low", "high", "macro_f1_low", "macro_f1_high",
        "difference", "difference_low", "difference_high", "n_tokens",
    ]  # fmt: skip


def test_an_unknown_package_is_refused_with_those_there_are(run: Path) -> None:
    result = shell.invoke("truth", run, "--kind", "utf8", "--all-documents", "--only", "elk")
    assert result.exit_code == 1
    assert "there is no package 'elk'; packages are ant, bee, cat, dog" in result.stderr


def test_the_printed_table_has_the_differences(run: Path) -> None:
    result = shell.invoke("truth", run, "--kind", "utf8", "--all-documents")
    head, features = result.stdout.splitlines()[:2]
    assert "difference_low" in head
    assert features.split().count("-") == 3


def test_neurons_are_read_on_the_documents_that_both_runs_cut_alike(
    run: Path, tmp_path: Path
) -> None:
    other = open_run(write(tmp_path / "neurons", ["0", "1", "2", "3"], cut=1))
    here = open_run(run)
    text = truth_text(here, "utf8", held_out=None)
    found = tables_of(here, text, neurons=other, shuffled=other)
    assert [text.packages[unit] for unit in found.units] == ["ant", "cat", "dog"]
    assert found.tables["features"].sum() == 3 * N_TOKENS
    same = found.tables["features"].tolist()
    assert found.tables["neurons"].tolist() == same
    assert found.tables["shuffled model, neurons at equal L0"].tolist() == same


def test_neurons_of_other_documents_are_refused(run: Path, tmp_path: Path) -> None:
    other = open_run(write(tmp_path / "neurons", ["7", "8", "9"]))
    here = open_run(run)
    text = truth_text(here, "utf8", held_out=None)
    with pytest.raises(GraphError, match="holds none of these documents"):
        tables_of(here, text, neurons=other)
