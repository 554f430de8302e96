"""Faults of models, made for real; ids are of the table of faults."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import shell
import tiny

from sae_core.language_model import OneLayerModel
from sae_core.transformer import save_model

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

BAD = "Z"  # the letter that the broken model cannot stand; nothing else in the texts holds it
LINES = 6000  # long enough for finished shards before it


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are finite, but whose sums are not where one letter comes."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = tiny.write_tokenizer(folder / "model" / "tokenizer.json")
    module = tiny.transformer()
    save_model(module, folder / "model", tokenizer=tokenizer)
    bad = OneLayerModel(folder / "model").encode(BAD.encode()).token_ids
    assert len(bad) == 1
    module.W_E.data[bad[0]] = 3e38 * module.W_E.data[bad[0]].sign()
    save_model(module, folder / "model", tokenizer=tokenizer)
    shell.write_sae(folder / "sae")
    return folder


def gather(parts: Path, texts: Path, out: Path, *more: object) -> Result:
    fixed = ["-o", out, "--model", parts / "model", "--sae", parts / "sae"]
    return shell.invoke("gather", texts, *fixed, *more)


def refused(result: Result, *words: str) -> None:
    shell.refused(result, *words)
    assert result.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert "RuntimeWarning" not in result.stderr


@pytest.mark.parametrize("place", [0, 5, 40])
@pytest.mark.parametrize("held_out", [0.0, 0.5])
def test_m5_a_number_that_is_not_finite_names_document_and_token(
    parts: Path, tmp_path: Path, place: int, held_out: float
) -> None:
    texts = tmp_path / "texts"
    shell.write_text(texts / "a.html", 3)
    words = "".join(f"{n % 10}," for n in range(30))
    (texts / "b.html").write_text(words[:place] + BAD + words[place:])
    shell.write_text(texts / "c.html", 3)
    ids = OneLayerModel(parts / "model").encode((texts / "b.html").read_bytes())
    token = int(np.searchsorted(ids.byte_end, place, side="right"))
    result = gather(parts, texts, tmp_path / "run", "--held-out", held_out)
    refused(result, "not finite", f"token {token} of document", "b.html")
    assert not (tmp_path / "run" / "tokens").exists()
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_m5_finished_shards_stay_and_hold_finite_numbers_only(parts: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    shell.write_text(texts / "a.html", LINES)
    (texts / "b.html").write_text(f"alpha {BAD} beta")
    for _ in range(2):  # again: the finished shards are taken up, the same document stops it
        refused(gather(parts, texts, tmp_path / "run"), "not finite", "b.html")
        manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
        assert not manifest["complete"]
        assert len(manifest["shards"]) >= 2
        found = pl.read_parquet(tmp_path / "run" / "tokens" / "*.parquet")
        for name in ("acts", "promotions"):
            assert found[name].explode().drop_nulls().is_finite().all()
        assert not (tmp_path / "run" / ".lock").exists()
