"""A run directory is checked before it is believed, and what is wrong is named."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from sae_core.errors import StoreError
from sae_core.files import sha256_of
from sae_core.run_writer import write_run
from sae_core.schema import Shard
from sae_core.store import (
    MANIFEST,
    Manifest,
    is_run,
    iter_token_shards,
    read_documents,
    read_manifest,
    read_tokens,
    read_vocabulary,
    token_files,
    verify,
    write_manifest,
    write_tokens,
)

if TYPE_CHECKING:
    from pathlib import Path

SHARD = "tokens/00000.parquet"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(
        tmp_path / "run",
        documents={"doc_id": [0, 7], "source": ["a", "b"], "held_out": [False, True]},
        tokens={"doc_id": [0, 0, 7, 7], "token_id": [0, 1, 1, 0]},
        indptr=[0, 1, 1, 3, 3],
        features=[2, 0, 4],
        acts=[1.0, 2.0, 3.0],
        promotions=[0.5, 0.0, -0.25],
        vocabulary=[b"<", b"\xe0"],
        d_sae=5,
    )


def change_manifest(run: Path, **fields: Any) -> None:
    found = json.loads((run / MANIFEST).read_text())
    (run / MANIFEST).write_text(json.dumps(found | fields))


def foreign_manifest(run: Path, **fields: Any) -> None:
    four = {"format": "sae-automata-run", "format_version": 1, "d_sae": 5, "d_vocab": 2}
    (run / MANIFEST).write_text(json.dumps(four | fields))


def change_table(path: Path, change: Any) -> None:
    change(pl.read_parquet(path)).write_parquet(path)


def test_a_manifest_comes_back_as_written(tmp_path: Path) -> None:
    shard = Shard("00000", 10, 2, {SHARD: "ab"})
    manifest = Manifest(5, 7, {"n_ctx": 3}, (shard,), {"a": "b"}, False, {"skipped": 1}, "0.1.0")
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert is_run(tmp_path)


def test_a_manifest_of_four_keys_is_enough(run: Path) -> None:
    foreign_manifest(run)
    assert read_manifest(run) == Manifest(d_sae=5, d_vocab=2)
    assert len(read_tokens(run).token_ids) == 4


def test_a_newer_version_is_refused_politely(run: Path) -> None:
    foreign_manifest(run, format_version=2)
    with pytest.raises(
        StoreError, match=r"format_version 2, newer than 1, .*; upgrade sae-automat"
    ):
        read_manifest(run)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": "something-else"}, 'does not say "format": "sae-automata-run"'),
        ({"format_version": "1"}, "has format_version '1'; expected 1"),
        ({"format_version": 0}, "has format_version 0; expected 1"),
        ({"d_sae": 0}, "has d_sae 0; expected a number >= 1"),
        ({"d_vocab": None}, "has d_vocab None; expected a number >= 1"),
        ({"shards": 3}, "has fields of the wrong kind"),
        ({"shards": [{"nme": "00000"}]}, "has fields of the wrong kind"),
        ({"settings": "text"}, "has fields of the wrong kind"),
    ],
)
def test_a_manifest_of_another_kind_says_which(
    run: Path, fields: dict[str, Any], said: str
) -> None:
    foreign_manifest(run, **fields)
    with pytest.raises(StoreError, match=said):
        read_manifest(run)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"', "{}"])
def test_json_that_is_no_manifest_is_refused(run: Path, text: str) -> None:
    (run / MANIFEST).write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json does not say"):
        read_manifest(run)


def test_a_hand_edited_manifest_is_seen(run: Path) -> None:
    change_manifest(run, d_sae=6)
    with pytest.raises(StoreError, match=r"was changed after it was written .* gather again"):
        read_manifest(run)


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    with pytest.raises(StoreError, match=r"manifest\.json is missing, so .* is not a run"):
        read_manifest(tmp_path)
    with pytest.raises(StoreError, match="is not a run directory; make one with"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "column", "read"),
    [
        ("documents.parquet", "sha256", read_documents),
        ("vocabulary.parquet", "token_bytes", read_vocabulary),
        (SHARD, "window_id", read_tokens),
        (SHARD, "promotions", read_tokens),
    ],
)
def test_a_missing_column_is_named(run: Path, file: str, column: str, read: Any) -> None:
    change_table(run / file, lambda frame: frame.drop(column))
    with pytest.raises(StoreError, match=f"{file} lacks the column '{column}'; expected"):
        read(run)


def test_a_column_of_another_type_is_named(run: Path) -> None:
    change_table(
        run / "documents.parquet",
        lambda frame: frame.with_columns(pl.lit("many").alias("n_tokens")),
    )
    with pytest.raises(StoreError, match=r"documents\.parquet has a column of the wrong type"):
        read_documents(run)


def test_a_column_of_a_wider_type_is_read(run: Path) -> None:
    change_table(run / SHARD, lambda frame: frame.with_columns(pl.col("token_id").cast(pl.Int64)))
    assert read_tokens(run).token_ids.dtype == np.uint32


def test_columns_beyond_the_known_ones_are_left_alone(run: Path) -> None:
    change_table(run / SHARD, lambda frame: frame.with_columns(pl.lit(1).alias("mine")))
    assert read_tokens(run).token_ids.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("documents.parquet", read_documents),
        ("vocabulary.parquet", read_vocabulary),
        (SHARD, read_tokens),
    ],
)
def test_a_cut_file_is_named(run: Path, file: str, read: Any) -> None:
    data = (run / file).read_bytes()
    (run / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match=file):
        read(run)


def test_lists_of_different_lengths_are_refused(run: Path) -> None:
    short = pl.Series("acts", [[1.0], [], [2.0], []], dtype=pl.List(pl.Float32))
    change_table(run / SHARD, lambda frame: frame.with_columns(short))
    with pytest.raises(StoreError, match="of a token have different lengths"):
        read_tokens(run)


def test_a_run_without_activations_says_how_to_keep_them(run: Path) -> None:
    write_tokens(run / SHARD, read_tokens(run), keep_acts=False)
    assert pl.read_parquet(run / SHARD).columns == [
        "doc_id", "window_id", "pos", "token_id", "byte_start", "byte_end",
    ]  # fmt: skip
    with pytest.raises(StoreError, match=r"holds no activations .* gather again with --keep-acts"):
        read_tokens(run)


def test_a_run_without_shards_says_so(run: Path) -> None:
    (run / SHARD).unlink()
    with pytest.raises(StoreError, match="tokens holds no shard"):
        read_tokens(run)


def test_held_out_documents_are_read_apart(run: Path) -> None:
    assert read_tokens(run, held_out=False).doc_ids.tolist() == [0, 0]
    held = read_tokens(run, held_out=True)
    assert held.doc_ids.tolist() == [7, 7]
    assert held.indptr.tolist() == [0, 2, 2]
    assert held.features.tolist() == [0, 4]
    assert held.promotions.tolist() == [0.0, -0.25]


def test_shards_joined_are_the_whole(run: Path) -> None:
    whole = read_tokens(run)
    second = whole._replace(doc_ids=whole.doc_ids + 10)
    write_tokens(run / "tokens" / "00001.parquet", second, keep_acts=True)
    assert [path.stem for path in token_files(run)] == ["00000", "00001"]
    both, parts = read_tokens(run), list(iter_token_shards(run))
    assert both.doc_ids.tolist() == [0, 0, 7, 7, 10, 10, 17, 17]
    assert both.indptr.tolist() == [0, 1, 1, 3, 3, 4, 4, 6, 6]
    for name in ("doc_ids", "token_ids", "features", "acts", "promotions"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(both, name), joined)


def test_verify_names_the_file_that_changed(run: Path) -> None:
    files = {name: sha256_of(run / name) for name in ("documents.parquet", "vocabulary.parquet")}
    shard = Shard("00000", 4, 2, {SHARD: sha256_of(run / SHARD)})
    write_manifest(run, Manifest(5, 2, shards=(shard,), files=files))
    assert all(row.ok for row in verify(run))
    data = bytearray((run / SHARD).read_bytes())
    data[len(data) // 2] ^= 1
    (run / SHARD).write_bytes(data)
    (run / "vocabulary.parquet").unlink()
    bad = {row.file: row.reason for row in verify(run) if not row.ok}
    assert bad == {
        SHARD: "its bytes are not those that were written",
        "vocabulary.parquet": "missing",
    }


def test_verify_says_that_a_run_is_not_finished(run: Path) -> None:
    write_manifest(run, Manifest(5, 2, complete=False))
    first = verify(run)[0]
    assert (first.file, first.ok) == (MANIFEST, False)
    assert first.reason.startswith("not finished")


def test_a_folder_with_brackets_in_its_name_is_read(run: Path) -> None:
    moved = run.rename(run.with_name("run [1]*'\n"))
    assert read_tokens(moved).token_ids.tolist() == [0, 1, 1, 0]
