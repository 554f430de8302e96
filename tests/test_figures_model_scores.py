"""The scores of a model: every token once, with enough context, and the sums come out."""

from __future__ import annotations

import json
import lzma
import math
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from figures import model_scores
from sae_core.errors import ModelError, TextError

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = {
    "html": ['<div class="a">\n<span>' + "alpha beta gamma " * 12 + "</span></div>\n", "<div>\n"],
    "english": ["the cat sat " * 20 + "delta\n", "epsilon zeta\n" * 9],
}
PAGE = "# Model\n\n<!-- margins -->\nold\n<!-- /margins -->\n\n<!-- scores -->\n<!-- /scores -->\nend\n"
CURVE = [
    {"n_tokens": 1000 * 2**n, "train_loss": 6.0 - n / 2, "validation_loss": 5.9 - n / 2}
    for n in range(5)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, both streams with their table, a curve and a page."""
    folder = tmp_path_factory.mktemp("scores")
    model = tiny.language_model(folder / "model")
    ids: list[int] = []
    rows = []
    for at in range(2):
        for family, texts in TEXTS.items():
            data = texts[at].encode()
            tokens = [0, *model.encode(data).token_ids.tolist()]
            row = {"start": len(ids), "n_tokens": len(tokens), "family": family}
            rows.append({**row, "sha256": sha256(data).hexdigest()})
            ids += tokens
    np.array(ids, np.uint16).tofile(folder / "validation.bin")
    np.array(ids * 3, np.uint16).tofile(folder / "train.bin")
    pl.DataFrame(rows).write_parquet(folder / "validation.docs.parquet")
    pl.DataFrame(CURVE).write_ndjson(folder / "model" / "metrics.jsonl")
    (folder / "model.md").write_text(PAGE)
    return folder


def computed(folder: Path, **options: int) -> dict:
    return model_scores.compute(
        folder / "model", folder / "train.bin", folder / "validation.bin", **options
    )


def spans(*lengths: int) -> pl.DataFrame:
    ends = np.cumsum(lengths)
    return pl.DataFrame({"start": ends - np.array(lengths), "end": ends})


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    n_ctx=st.integers(2, 20),
)
@settings(max_examples=100, deadline=None)
def test_every_token_is_scored_once_with_half_a_window_or_its_document_before_it(
    lengths: list[int], n_ctx: int
) -> None:
    documents = spans(*lengths)
    windows = model_scores.lay_windows(documents, n_ctx=n_ctx)
    n_scored = np.zeros(sum(lengths), np.int64)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for start, scored_from, end in zip(*windows, strict=True):
        scored = np.arange(scored_from, min(start + n_ctx + 1, end))
        n_scored[scored] += 1
        first = documents["start"][int(document_of[start])]
        assert len(set(document_of[start:end])) == 1
        assert ((scored - start >= n_ctx / 2) | (start == first)).all()
    expected = np.ones(sum(lengths), np.int64)
    expected[documents["start"].to_numpy()] = 0
    np.testing.assert_array_equal(n_scored, expected)


def test_losses_equal_those_of_the_model_run_on_each_window_alone() -> None:
    model = tiny.transformer()  # n_ctx 16
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 300, 60).astype(np.uint16)
    ids[[0, 45]] = 0
    windows = model_scores.lay_windows(spans(45, 15), n_ctx=16)
    found = model_scores.model_nats(model, ids, windows)

    def loss(first: int, at: int) -> float:
        """Of the token at `at`, read from `first` on."""
        with torch.no_grad():
            logits = model(torch.from_numpy(ids[None, first:at].astype(np.int64)))[0, -1]
        return -float(torch.log_softmax(logits, 0)[int(ids[at])])

    # document 1: 16 tokens from its start, then half windows of 8; document 2 fits in one window
    read_from = {1: 0, 16: 0, 17: 8, 24: 8, 25: 16, 33: 24, 41: 32, 44: 32, 46: 45, 59: 45}
    for at, first in read_from.items():
        assert found[at] == pytest.approx(loss(first, at), abs=1e-4), at
    assert np.flatnonzero(np.isnan(found)).tolist() == [0, 45]


def test_scores_of_families_add_up_to_those_of_all(files: Path) -> None:
    found = computed(files)
    families, total = found["families"], found["all"]
    assert {row["family"] for row in families} == set(TEXTS)
    assert families[0]["n_tokens"] > families[1]["n_tokens"]
    n_bytes = sum(len(text) for texts in TEXTS.values() for text in texts)
    assert (total["family"], total["n_documents"], total["n_bytes"]) == ("all", 4, n_bytes)
    for name in ("model", "trigram", "bigram", "unigram"):
        nats = sum(row[f"{name}_nats"] * row["n_tokens"] for row in families)
        assert nats == pytest.approx(total[f"{name}_nats"] * total["n_tokens"], rel=1e-4)
        bits = nats / math.log(2) / n_bytes
        assert total[f"{name}_bits"] == pytest.approx(bits, rel=1e-4)
    assert total["trigram_nats"] < total["bigram_nats"] < total["unigram_nats"]


def test_xz_has_the_size_of_its_archive_and_all_takes_the_smallest(files: Path) -> None:
    found = computed(files)
    sizes = {}
    for family, texts in TEXTS.items():
        data = "".join(texts).encode()
        sizes[family] = len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    for row in found["families"]:
        assert row["xz_bits"] * row["n_bytes"] / 8 == pytest.approx(sizes[row["family"]], abs=0.01)
    total = found["all"]["xz_bits"] * found["all"]["n_bytes"] / 8
    assert total < sum(sizes.values())  # one archive has one header


def test_margins_compare_with_the_trigram_and_with_xz() -> None:
    row = {"trigram_nats": 2.5, "model_nats": 2.25, "model_bits": 1.5, "xz_bits": 2.0}
    found = model_scores.margins(row)
    assert found == {"nats_below_trigram": 0.25, "percent_below_xz": 25.0}


def test_a_model_that_is_behind_is_said_to_be() -> None:
    ahead = {"trigram_nats": 2.5, "model_nats": 2.0, "model_bits": 1.0, "xz_bits": 2.0}
    behind = {**ahead, "model_nats": 2.6, "model_bits": 2.5}
    rows = [{"family": "html", **ahead}, {"family": "dna", **behind}]
    text = model_scores.margins_text({"families": rows, "margins": model_scores.margins(ahead)})
    assert "0.500 nats a token below the trigram's. Not below in: dna." in text
    assert "50.0 % fewer bytes than `xz -9e`. Not fewer in: dna." in text
    text = model_scores.margins_text({"families": rows, "margins": model_scores.margins(behind)})
    assert "0.100 nats a token above the trigram's." in text
    assert "25.0 % more bytes" in text


def test_a_limit_reads_the_first_documents_only(files: Path) -> None:
    table = pl.read_parquet(files / "validation.docs.parquet")
    limit = int(table["n_tokens"][:2].sum())
    assert computed(files, limit_tokens=limit)["all"]["n_documents"] == 2
    with pytest.raises(TextError, match="no document ends within 3 tokens"):
        computed(files, limit_tokens=3)


def test_another_tokenizer_than_that_of_the_streams_is_refused(files: Path, tmp_path: Path) -> None:
    table = pl.read_parquet(files / "validation.docs.parquet")
    (tmp_path / "validation.bin").write_bytes((files / "validation.bin").read_bytes())
    digests = table["sha256"].to_list()
    other = table.with_columns(sha256=pl.Series([*digests[:2], digests[0], digests[3]]))
    other.write_parquet(tmp_path / "validation.docs.parquet")
    with pytest.raises(ModelError, match=rf"document at token {table['start'][2]} does not come"):
        model_scores.compute(files / "model", files / "train.bin", tmp_path / "validation.bin")


def test_a_table_of_another_stream_is_refused(files: Path, tmp_path: Path) -> None:
    table = pl.read_parquet(files / "validation.docs.parquet")
    (tmp_path / "validation.bin").write_bytes((files / "validation.bin").read_bytes())
    table[:3].write_parquet(tmp_path / "validation.docs.parquet")
    with pytest.raises(TextError, match="lists 3 documents that are not those of"):
        model_scores.compute(files / "model", files / "train.bin", tmp_path / "validation.bin")


def test_the_script_writes_the_same_page_numbers_and_picture_each_time(files: Path) -> None:
    pytest.importorskip("matplotlib")
    names = ("model", "train.bin", "validation.bin")
    arguments = [*(str(files / name) for name in names), "--docs", str(files)]
    written = []
    for _ in range(2):
        model_scores.main(arguments)
        outputs = ("model.md", "model-scores.json", "model-curve.svg")
        written.append([(files / name).read_text() for name in outputs])
    assert written[0] == written[1]
    page, numbers, picture = written[0]
    assert page.startswith("# Model\n\n<!-- margins -->\n- The model's loss is ")
    assert page.endswith("\n<!-- /scores -->\nend\n")
    assert "old" not in page
    assert "| html | 2 |" in page
    assert "| **all** | **4** |" in page
    total = json.loads(numbers)["all"]
    assert f">trigram {total['trigram_nats']:.2f}</text>" in picture
    assert "tokens seen (millions)</text>" in picture


def test_a_page_without_the_block_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.md").write_text("# Model\n")
    with pytest.raises(TextError, match="must hold one block <!-- scores -->"):
        model_scores.write_blocks(tmp_path / "model.md", {"scores": "table"})


def test_a_missing_curve_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("model", "train.bin", "validation.bin")]
    with pytest.raises(ModelError, match=r"no .*metrics\.jsonl; name the run's"):
        model_scores.main(names)
