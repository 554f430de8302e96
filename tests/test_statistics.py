"""The sums are exact, add up over any parts, and come back from disk byte for byte."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import naive
import numpy as np
import polars as pl
import pytest
import shell
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from sae_core import counting
from sae_core.errors import StoreError, StoreMismatchError
from sae_core.feature_table import features_table
from sae_core.statistics import (
    PROMOTION_THRESHOLD,
    Statistics,
    collect,
    empty_statistics,
    is_saved,
    load,
    merge,
    save,
)
from sae_core.summed_files import add_up

if TYPE_CHECKING:
    from pathlib import Path

    from sae_core.schema import TokenTable

D_SAE, D_VOCAB = 7, 5
FRAMES = ("transitions", "edge_tokens", "coactivation", "token_features", "promoted_tokens")
SEEDS = (0, 1, 2, 3)


def counted(seed: int) -> tuple[TokenTable, Statistics]:
    tokens = naive.random_tokens(seed)
    return tokens, collect(tokens, D_SAE, D_VOCAB)


def as_dict(frame: pl.DataFrame, keys: list[str], value: str) -> dict[Any, int]:
    rows = frame.select(*keys, value).rows()
    return {row[:-1] if len(keys) > 1 else row[0]: row[-1] for row in rows if row[-1]}


def without_zeros(counter: dict[Any, int]) -> dict[Any, int]:
    return {key: value for key, value in counter.items() if value}


def assert_same(a: Statistics, b: Statistics) -> None:
    for name in Statistics.__dataclass_fields__:
        left, right = getattr(a, name), getattr(b, name)
        if name in FRAMES:
            assert_frame_equal(left, right)
        else:
            np.testing.assert_array_equal(left, right, err_msg=name)
            assert np.asarray(left).dtype == np.asarray(right).dtype


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("table", "keys", "value", "twin"),
    [
        ("transitions", ["source", "target"], "n_pairs", "pairs"),
        ("transitions", ["source", "target"], "n_promoted", "promoted"),
        ("transitions", ["source", "target"], "nats", "nats"),
        ("transitions", ["source", "target"], "n_lagged", "lagged"),
        ("edge_tokens", ["source", "target", "token_id"], "n_pairs", "token_pairs"),
        ("edge_tokens", ["source", "target", "token_id"], "n_promoted", "token_promoted"),
        ("coactivation", ["feature_a", "feature_b"], "n_both", "both"),
        ("token_features", ["feature_idx", "token_id"], "n_fires", "token_features"),
        ("promoted_tokens", ["feature_idx", "token_id"], "n_promoted", "promoted_token"),
        ("promoted_tokens", ["feature_idx", "token_id"], "nats", "promoted_token_nats"),
    ],
)
def test_every_table_equals_its_plain_twin(
    seed: int, table: str, keys: list[str], value: str, twin: str
) -> None:
    tokens, statistics = counted(seed)
    expected = without_zeros(naive.statistics(tokens, PROMOTION_THRESHOLD)[twin])
    assert expected
    frame = getattr(statistics, table)
    assert as_dict(frame, keys, value) == expected
    assert frame.rows() == frame.sort(keys).rows()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_sum_of_a_feature_equals_its_plain_twin(seed: int) -> None:
    tokens, statistics = counted(seed)
    twin = naive.statistics(tokens, PROMOTION_THRESHOLD)
    names = {
        "n_fires": "fires",
        "n_source": "source",
        "n_target": "target",
        "act_sum": "act_sum",
        "act_max": "act_max",
        "n_promoted_source": "promoted_source",
    }
    for ours, theirs in names.items():
        expected = [twin[theirs][i] for i in range(D_SAE)]
        assert any(expected)
        assert getattr(statistics, ours).tolist() == expected, ours
    assert statistics.token_counts.tolist() == [twin["token"][v] for v in range(D_VOCAB)]
    for name in ("n_tokens", "n_pairs", "n_lag_pairs"):
        assert getattr(statistics, name) == twin[name] > 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_merging_any_split_at_documents_equals_the_whole(seed: int, data: st.DataObject) -> None:
    tokens = naive.random_tokens(seed, n=80, n_docs=8)
    inner = data.draw(st.sets(st.sampled_from([0, *naive.cuts(tokens)])))
    bounds = sorted({0, *inner, len(tokens.doc_ids)})
    parts = [collect(naive.part(tokens, a, b), D_SAE, D_VOCAB) for a, b in pairwise(bounds)]
    shuffled = data.draw(st.permutations(parts))
    assert_same(merge(list(shuffled)), collect(tokens, D_SAE, D_VOCAB))


def test_the_size_of_a_block_does_not_change_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, whole = counted(5)
    monkeypatch.setattr(counting, "BLOCK_ENTRIES", 40)
    monkeypatch.setattr(counting, "RANGES", 1)
    monkeypatch.setattr(counting, "BUFFER_ROWS", 8)
    assert len(counting.find_blocks(tokens)) > 3
    assert_same(collect(tokens, D_SAE, D_VOCAB), whole)


@pytest.mark.parametrize("seed", SEEDS)
def test_lagged_pairs_of_many_features_are_counted_like_those_of_few(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    tokens, whole = counted(seed)
    monkeypatch.setattr(counting, "DENSE_FEATURES", 0)
    assert_same(collect(tokens, D_SAE, D_VOCAB), whole)
    assert whole.transitions["n_lagged"].sum() > 0


def test_saved_sums_come_back_and_equal_sums_give_equal_bytes(tmp_path: Path) -> None:
    tokens, statistics = counted(0)
    assert not is_saved(tmp_path / "a")
    save(statistics, tmp_path / "a")
    assert is_saved(tmp_path / "a")
    assert_same(load(tmp_path / "a"), statistics)
    middle = naive.cuts(tokens)[1]
    pieces = [naive.part(tokens, middle, len(tokens.doc_ids)), naive.part(tokens, 0, middle)]
    save(merge([collect(piece, D_SAE, D_VOCAB) for piece in pieces]), tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 8
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_an_empty_stream_has_empty_sums(tmp_path: Path) -> None:
    statistics = collect(naive.part(naive.random_tokens(0), 0, 0), D_SAE, D_VOCAB)
    assert statistics.n_tokens == statistics.n_pairs == 0
    assert statistics.transitions.is_empty()
    save(statistics, tmp_path)
    assert_same(load(tmp_path), statistics)
    full = counted(1)[1]
    assert_same(merge([statistics, full]), full)


def test_tokens_on_which_nothing_fires_are_counted() -> None:
    tokens = naive.random_tokens(0)
    silent = tokens._replace(
        indptr=np.zeros_like(tokens.indptr),
        **{name: getattr(tokens, name)[:0] for name in ("features", "acts", "promotions")},
    )
    statistics = collect(silent, D_SAE, D_VOCAB)
    assert statistics.n_tokens == len(tokens.doc_ids)
    assert statistics.n_fires.sum() == 0


def test_sums_stay_exact_past_four_thousand_million() -> None:
    statistics = counted(0)[1]
    total = statistics
    for _ in range(36):
        total = merge([total, total])
    factor = 2**36
    assert total.transitions["nats"].to_list() == [
        n * factor for n in statistics.transitions["nats"].to_list()
    ]
    assert total.n_pairs == statistics.n_pairs * factor > 2**32


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("features", D_SAE, "has a feature that is not in 0..6"),
        ("acts", np.nan, "an activation that is not a number above 0 and below 2^43"),
        ("acts", 0.0, "an activation that is not a number above 0 and below 2^43"),
        ("promotions", np.inf, "a promotion that is not a number between -2^43 and 2^43"),
        ("acts", 2.0**43, "an activation that is not a number above 0 and below 2^43"),
    ],
)
def test_a_bad_entry_is_refused_with_its_token_named(
    field: str, value: float, sentence: str
) -> None:
    tokens = naive.random_tokens(0)
    column = getattr(tokens, field).copy()
    entry = int(tokens.indptr[58]) - 1
    row = int(np.searchsorted(tokens.indptr, entry, side="right")) - 1
    column[entry] = value
    where = f"token {tokens.pos[row]} of document {tokens.doc_ids[row]} "
    with pytest.raises(StoreError, match=where + ".*" + re.escape(sentence)):
        collect(tokens._replace(**{field: column}), D_SAE, D_VOCAB)


def test_features_out_of_order_and_unknown_tokens_are_refused() -> None:
    tokens = naive.random_tokens(0)
    with pytest.raises(StoreError, match="features that do not ascend"):
        collect(tokens._replace(features=tokens.features[::-1].copy()), D_SAE, D_VOCAB)
    with pytest.raises(StoreError, match=r"has an id not in 0\.\.3"):
        collect(tokens, D_SAE, 4)


def test_parts_of_other_sizes_are_not_merged() -> None:
    tokens = naive.random_tokens(0)
    parts = [collect(tokens, D_SAE, D_VOCAB), collect(tokens, D_SAE + 1, D_VOCAB)]
    with pytest.raises(StoreMismatchError, match="8 features and 5 tokens"):
        merge(parts)
    with pytest.raises(ValueError, match="at least one part"):
        merge([])


def test_sums_made_with_another_threshold_are_refused(tmp_path: Path) -> None:
    save(counted(0)[1], tmp_path)
    path = tmp_path / "totals.parquet"
    changed = pl.read_parquet(path).with_columns(pl.lit(0.2).alias("promotion_threshold"))
    changed.write_parquet(path)
    with pytest.raises(StoreError, match=r"promotion threshold of 0\.2 nats"):
        load(tmp_path)


def words() -> pl.DataFrame:
    names = [f" w{v}" for v in range(D_VOCAB)]
    return pl.DataFrame(
        {
            "token_id": pl.Series(range(D_VOCAB), dtype=pl.UInt32),
            "token_bytes": [name.encode() for name in names],
            "token_str": names,
        }
    )


def test_a_feature_is_described_by_the_tokens_it_fires_on_most() -> None:
    tokens, statistics = counted(0)
    table = features_table(statistics, words())
    twin = naive.statistics(tokens, PROMOTION_THRESHOLD)
    for row in table.rows(named=True):
        i = row["feature_idx"]
        on = {v: twin["token_features"][i, v] for v in range(D_VOCAB)}
        expected = sorted((v for v in on if on[v]), key=lambda v: (-on[v], v))
        assert row["top_tokens"] == [f" w{v}" for v in expected]
        assert row["n_fires"] == twin["fires"][i]
        assert row["density"] == pytest.approx(twin["fires"][i] / len(tokens.doc_ids))
        if on and twin["fires"][i]:
            mean = twin["act_sum"][i] / 2**20 / twin["fires"][i]
            assert row["mean_act"] == pytest.approx(mean)
            assert row["label"].startswith("` w")
        assert row["suppressed_tokens"] == []
    assert table["promoted_tokens"].list.len().max() == D_VOCAB


def test_promoted_and_suppressed_tokens_come_from_the_logit_effects() -> None:
    effects = pl.DataFrame(
        {
            "feature_idx": [0, 0, 0, 2],
            "token_id": [3, 1, 4, 0],
            "token_str": ["", "", "", ""],
            "nats_per_unit": [0.5, 2.0, -1.0, -0.1],
        }
    )
    table = features_table(counted(0)[1], words(), effects)
    assert table["promoted_tokens"].to_list()[:3] == [[" w1", " w3"], [], []]
    assert table["suppressed_tokens"].to_list()[:3] == [[" w4"], [], [" w0"]]


def test_a_feature_that_never_fires_has_zeros_and_says_so() -> None:
    statistics = collect(naive.random_tokens(0), D_SAE + 1, D_VOCAB)
    row = features_table(statistics, words()).row(D_SAE, named=True)
    assert (row["n_fires"], row["mean_act"], row["max_act"]) == (0, 0.0, 0.0)
    assert row["top_tokens"] == []
    assert row["label"] == "never fires"


@pytest.mark.parametrize("n_rows", [1, 5, 1 << 20])
@pytest.mark.parametrize("n_parts", [1, 2, 5])
def test_sums_added_up_on_disk_are_byte_for_byte_those_added_at_once(
    tmp_path: Path, n_parts: int, n_rows: int
) -> None:
    parts = [counted(seed)[1] for seed in range(n_parts)]
    folders = [tmp_path / str(at) for at in range(n_parts)]
    for part, folder in zip(parts, folders, strict=True):
        save(part, folder)
    save(merge(parts), tmp_path / "whole")
    add_up(folders, tmp_path / "found", n_rows=n_rows)
    assert shell.digests(tmp_path / "found") == shell.digests(tmp_path / "whole")


def test_sums_of_no_text_are_added_up(tmp_path: Path) -> None:
    nothing, something = empty_statistics(D_SAE, D_VOCAB), counted(0)[1]
    for name, part in (("a", nothing), ("b", something), ("c", nothing)):
        save(part, tmp_path / name)
    add_up([tmp_path / name for name in "abc"], tmp_path / "found")
    assert_same(load(tmp_path / "found"), something)
    add_up([tmp_path / name for name in "ac"], tmp_path / "none")
    assert_same(load(tmp_path / "none"), nothing)


def test_sums_that_are_cut_or_of_other_sizes_are_not_added_up(tmp_path: Path) -> None:
    save(counted(0)[1], tmp_path / "a")
    save(collect(naive.random_tokens(0), D_SAE + 1, D_VOCAB), tmp_path / "b")
    with pytest.raises(StoreMismatchError, match="one part has"):
        add_up([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(ValueError, match="at least one part"):
        add_up([], tmp_path / "out")
    file = tmp_path / "a" / "transitions.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"transitions\.parquet is not a whole Parquet file"):
        add_up([tmp_path / "a"], tmp_path / "out")


def test_sums_whose_rows_are_in_another_order_are_added_up_all_the_same(tmp_path: Path) -> None:
    parts = [counted(seed)[1] for seed in (0, 1)]
    for name, part in zip("ab", parts, strict=True):
        save(part, tmp_path / name)
    file = tmp_path / "a" / "transitions.parquet"
    pl.read_parquet(file).reverse().write_parquet(file)
    add_up([tmp_path / "a", tmp_path / "b"], tmp_path / "found", n_rows=5)
    assert_same(load(tmp_path / "found"), merge(parts))


def test_sums_of_a_feature_that_is_not_there_are_refused(tmp_path: Path) -> None:
    save(counted(0)[1], tmp_path / "a")
    file = tmp_path / "a" / "transitions.parquet"
    pl.read_parquet(file).with_columns(pl.col("source") + D_SAE).write_parquet(file)
    with pytest.raises(StoreError, match=rf"holds the feature \d+ of {D_SAE}; gather again"):
        add_up([tmp_path / "a"], tmp_path / "out")
