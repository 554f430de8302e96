"""The truth page: packages of two folders, a shuffled model, and blocks that are written anew."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import shell
import tiny
import torch

from figures import truth
from figures.tables import block, plain, replace_block
from sae_core.errors import TextError

if TYPE_CHECKING:
    from pathlib import Path


def write_pages(folder: Path, *packages: str, seed: int) -> Path:
    for at, package in enumerate(packages):
        for page in range(2):
            file = folder / package / f"{page}.html"
            shell.write_text(file, 12, seed=seed + 40 * at + 20 * page)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny.write_model(folder / "model")
    shell.write_sae(folder / "sae")
    write_pages(folder / "development", "ant", "bee", "cat", seed=0)
    write_pages(folder / "read-once", "dog", "elk", seed=500)
    page = (folder / "development" / "ant" / "0.html").read_bytes()
    rows = [("html/fox/0.html", "html", "fox", page + b"<p>"), ("c/gnu/0.h", "c", "gnu", b"int x;")]
    columns = {"source": pl.String, "family": pl.String, "package": pl.String, "text": pl.Binary}
    table = pl.DataFrame(rows, schema=columns, orient="row")
    table.write_parquet(folder / "sample.parquet")
    return folder


@pytest.fixture(scope="module")
def found(parts: Path) -> truth.Measured:
    model, sae = str(parts / "model"), str(parts / "sae")
    return truth.measure(parts / "development", model=model, sae=sae)


@pytest.fixture(scope="module")
def once(parts: Path) -> truth.Measured:
    model, sae = str(parts / "model"), str(parts / "sae")
    fit = [parts / "development", parts / "sample.parquet"]
    return truth.measure(parts / "read-once", fit, model=model, sae=sae)


def test_every_baseline_stands_beside_the_features(found: truth.Measured) -> None:
    assert [row.what for row in found.rows] == [
        "features", "features, presence", "neurons", "neurons, presence", "neurons at equal L0",
        "neurons at equal L0, presence", *(f"neuron probe, {k}" for k in (1, 2, 5, 10, "all")),
        "shuffled model, neurons at equal L0", "shuffled model, neuron probe, all", "token",
        "token pair", "majority",
    ]  # fmt: skip
    assert found.scored == found.packages == ["ant", "bee", "cat"]


def test_pages_to_fit_on_teach_and_are_not_scored(
    found: truth.Measured, once: truth.Measured
) -> None:
    assert once.packages == ["ant", "bee", "cat", "dog", "elk", "fox"]
    assert once.scored == ["dog", "elk"]
    assert once.rows[0].n_tokens < found.rows[0].n_tokens
    assert "| dog |" in truth.packages_text(once)
    assert "| ant |" not in truth.packages_text(once)


def test_a_package_given_twice_is_refused(parts: Path) -> None:
    with pytest.raises(ValueError, match="package ant is given twice"):
        truth.measure(parts / "development", [parts / "development"])


def test_a_folder_without_packages_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(TextError, match="no text was given"):
        truth.measure(tmp_path)


def test_the_page_is_remade_in_place(found: truth.Measured, tmp_path: Path) -> None:
    truth.write(found, tmp_path)
    page = tmp_path / "truth.md"
    first, numbers = page.read_text(), (tmp_path / "truth.json").read_text()
    page.write_text(first.replace("# Truth", "# Truth\n\nWords of a person."))
    truth.write(found, tmp_path)
    assert page.read_text() == first.replace("# Truth", "# Truth\n\nWords of a person.")
    assert (tmp_path / "truth.json").read_text() == numbers
    assert json.loads(numbers)["scored"] == ["ant", "bee", "cat"]


def test_the_mistakes_add_up(found: truth.Measured) -> None:
    table = found.tables["features"].sum(axis=0)
    n_wrong = sum(int(table[a, b]) for a, b in truth.confusions(table))
    assert n_wrong == table.sum() - np.trace(table)
    assert f"| any | another | {n_wrong:,} |" in truth.mistakes_text(found)


def test_measuring_again_gives_the_same(parts: Path, found: truth.Measured) -> None:
    model, sae = str(parts / "model"), str(parts / "sae")
    again = truth.measure(parts / "development", model=model, sae=sae)
    assert truth.as_json(again) == truth.as_json(found)


def test_a_shuffled_model_has_the_same_entries_in_other_places() -> None:
    model = tiny.transformer()
    shuffled, again = (truth.shuffled_copy(model, seed=0) for _ in range(2))
    for name, weight in model.state_dict().items():
        other = shuffled.state_dict()[name]
        assert torch.equal(other.flatten().sort().values, weight.flatten().sort().values)
        assert not torch.equal(other, weight), name
        assert torch.equal(other, again.state_dict()[name])
    assert not torch.equal(
        truth.shuffled_copy(model, seed=1).W_E, truth.shuffled_copy(model, seed=2).W_E
    )


def test_a_page_without_the_block_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    with pytest.raises(ValueError, match="has no block 'numbers'"):
        replace_block(page, "numbers", "1")


def test_a_block_keeps_what_stands_around_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{block('a', 'old')}\nbetween\n{block('b', 'kept')}\nafter\n")
    replace_block(page, "a", r"new \1")
    expected = "before\n<!-- a -->\nnew \\1\n<!-- /a -->\nbetween\n<!-- b -->\nkept\n<!-- /b -->"
    assert page.read_text() == f"{expected}\nafter\n"


def test_words_of_others_are_no_markdown() -> None:
    assert plain("**a** [b](c)\n# <d>") == r"\*\*a\*\* \[b\]\(c\) \# \<d\>"
