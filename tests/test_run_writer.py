"""Activations made elsewhere become a run; what does not fit is named by its argument."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sae_core
from sae_core.errors import StoreError
from sae_core.run_writer import vocabulary_frame, write_run
from sae_core.store import read_documents, read_manifest, read_tokens, read_vocabulary

WORLD: dict[str, Any] = {
    "documents": {"doc_id": [3, 5], "source": ["a.html", "b.html"]},
    "tokens": {"doc_id": [3, 3, 5], "token_id": [0, 2, 1]},
    "indptr": [0, 2, 2, 3],
    "features": [1, 4, 0],
    "acts": [0.5, 1.5, 2.5],
    "promotions": [0.25, -0.5, 0.0],
    "vocabulary": [b"<", b" href", b"\xe0\xae"],
    "d_sae": 6,
}


def written(path: Path, **changes: Any) -> Path:
    return write_run(path / "run", **(WORLD | changes))


def test_a_run_comes_back_as_written(tmp_path: Path) -> None:
    run = written(tmp_path)
    tokens = read_tokens(run)
    assert tokens.doc_ids.tolist() == [3, 3, 5]
    assert tokens.token_ids.tolist() == [0, 2, 1]
    assert tokens.indptr.tolist() == [0, 2, 2, 3]
    assert tokens.features.tolist() == [1, 4, 0]
    assert tokens.acts.tolist() == [0.5, 1.5, 2.5]
    assert tokens.promotions.tolist() == [0.25, -0.5, 0.0]
    manifest = read_manifest(run)
    assert (manifest.d_sae, manifest.d_vocab) == (6, 3)


def test_positions_bytes_and_windows_are_filled_in(tmp_path: Path) -> None:
    tokens = read_tokens(written(tmp_path))
    assert tokens.pos.tolist() == [0, 1, 0]
    assert tokens.byte_start.tolist() == [0, 1, 0]
    assert tokens.byte_end.tolist() == [1, 3, 5]
    assert tokens.window_ids.tolist() == [0, 0, 1]


def test_documents_are_filled_in(tmp_path: Path) -> None:
    documents = read_documents(written(tmp_path))
    assert documents.select("doc_id", "n_tokens", "n_bytes", "held_out").rows() == [
        (3, 2, 3, False),
        (5, 1, 5, False),
    ]


def test_columns_that_are_given_are_kept(tmp_path: Path) -> None:
    tokens = WORLD["tokens"] | {"window_id": [4, 9, 9], "pos": [7, 8, 0]}
    documents = WORLD["documents"] | {"held_out": [True, False], "n_tokens": [8, 8]}
    run = written(tmp_path, tokens=tokens, documents=documents)
    assert read_tokens(run).window_ids.tolist() == [4, 9, 9]
    assert read_tokens(run).pos.tolist() == [7, 8, 0]
    assert read_documents(run)["held_out"].to_list() == [True, False]
    assert read_documents(run)["n_tokens"].to_list() == [8, 8]


def test_a_list_of_sources_numbers_the_documents(tmp_path: Path) -> None:
    tokens = {"doc_id": [0, 0, 1], "token_id": [0, 2, 1]}
    run = written(tmp_path, documents=["x", "y", "empty"], tokens=tokens)
    assert read_documents(run).select("doc_id", "source", "n_tokens").rows() == [
        (0, "x", 2),
        (1, "y", 1),
        (2, "empty", 0),
    ]


@pytest.mark.parametrize(
    "column",
    [{"token_str": ["<", "\\xe0\\xae", " href"]}, {"token_bytes": [b"<", b"\xe0\xae", b" href"]}],
)
def test_a_missing_vocabulary_is_taken_from_the_tokens(
    tmp_path: Path, column: dict[str, Any]
) -> None:
    run = written(tmp_path, vocabulary=None, tokens=WORLD["tokens"] | column)
    assert read_vocabulary(run)["token_bytes"].to_list() == WORLD["vocabulary"]


def test_without_any_vocabulary_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give vocabulary, the bytes of each token by id"):
        written(tmp_path, vocabulary=None)


def test_the_number_of_features_is_that_of_the_largest(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path, d_sae=None)).d_sae == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"indptr": [0, 2, 3]}, "indptr must rise from 0 over 4 entries"),
        ({"indptr": [1, 2, 2, 3]}, "indptr must rise from 0"),
        ({"indptr": [0, 2, 1, 3]}, "indptr must rise from 0"),
        ({"features": [1, 4]}, r"features must have 3 entries, got \(2,\)"),
        ({"acts": [1.0]}, r"acts must have 3 entries, got \(1,\)"),
        ({"promotions": [[0.0]]}, r"promotions must have 3 entries, got \(1, 1\)"),
        ({"features": [1, 6, 0]}, r"features must be in 0\.\.5, got 0\.\.6"),
        ({"features": [-1, 4, 0]}, r"features must be in 0\.\.5, got -1\.\.4"),
        ({"features": [4, 1, 0]}, "features must ascend within each token"),
        ({"features": [4, 4, 0]}, "features must ascend within each token, without repeats"),
        ({"acts": [0.5, 0.0, 2.5]}, "acts must be finite and > 0"),
        ({"acts": [0.5, np.nan, 2.5]}, "acts must be finite and > 0"),
        ({"acts": [0.5, np.inf, 2.5]}, "acts must be finite and > 0"),
        ({"promotions": [0.5, np.nan, 2.5]}, "promotions must be finite"),
        ({"tokens": {"doc_id": [3, 3, 5]}}, "tokens lacks the column 'token_id'"),
        ({"tokens": {"doc_id": [3, 3, 5], "token_id": [0, 3, 1]}}, "token_id must be below 3"),
        ({"tokens": {"doc_id": [3, 4, 5], "token_id": [0, 2, 1]}}, "doc_id 4 is not among the doc"),
        ({"documents": {"doc_id": [3, 5]}}, "documents lacks the column 'source'"),
    ],
)
def test_what_does_not_fit_is_named_by_its_argument(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        written(tmp_path, **changes)


def test_a_refused_run_leaves_nothing_behind(tmp_path: Path) -> None:
    for changes in ({"documents": {"doc_id": [3, 5]}}, {"acts": [0.0, 1.0, 1.0]}):
        with pytest.raises(ValueError, match=r"documents|acts"):
            written(tmp_path, **changes)
        assert not (tmp_path / "run").exists()


def test_an_existing_folder_with_files_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(StoreError, match="run exists; choose a new folder"):
        written(tmp_path)


def test_an_empty_folder_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert read_manifest(written(tmp_path)).d_sae == 6


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    one, two = written(tmp_path / "1"), written(tmp_path / "2")
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 4
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_vocabulary_rows_are_by_id() -> None:
    rows = vocabulary_frame([b"\n", b"\xff", b""]).rows()
    assert rows == [(0, b"\n", "\\n"), (1, b"\xff", "\\xff"), (2, b"", "")]


def test_the_package_offers_the_writer() -> None:
    assert sae_core.write_run is write_run


ROWS = st.lists(
    st.dictionaries(
        st.integers(0, 9),
        st.tuples(st.floats(0.125, 9, width=32), st.floats(-9, 9, width=32)),
        max_size=4,
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 9))
def test_whatever_fires_is_read_as_it_was_written(
    rows: list[dict[int, tuple[float, float]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    flat = [(feature, *row[feature]) for row in rows for feature in sorted(row)]
    doc_ids = np.sort(rng.integers(0, 3, len(rows)))
    token_ids = rng.integers(0, 4, len(rows))
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(
            Path(folder) / "run",
            documents=["a", "b", "c"],
            tokens=pl.DataFrame({"doc_id": doc_ids, "token_id": token_ids}),
            indptr=np.cumsum([0, *map(len, rows)]),
            features=np.array([feature for feature, *_ in flat], dtype=np.int64),
            acts=np.array([act for _, act, _ in flat], dtype=np.float32),
            promotions=np.array([nats for *_, nats in flat], dtype=np.float32),
            vocabulary=[b"a", b"b", b"\xc3", b""],
            d_sae=10,
        )
        tokens = read_tokens(run)
    assert tokens.doc_ids.tolist() == doc_ids.tolist()
    assert tokens.token_ids.tolist() == token_ids.tolist()
    assert np.diff(tokens.indptr).tolist() == [len(row) for row in rows]
    assert tokens.features.tolist() == [feature for feature, *_ in flat]
    assert tokens.acts.tolist() == [act for _, act, _ in flat]
    assert tokens.promotions.tolist() == [nats for *_, nats in flat]
