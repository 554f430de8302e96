"""Faults R13 and R14: merges in any order, of what must not be merged; counts past 2^32."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from typing import TYPE_CHECKING, Any

import naive
import numpy as np
import polars as pl
import pytest
import shell
import tiny

import circuits
from circuits.edge_tables import build_edges
from circuits.evidence import pair_table
from sae_core import statistics
from sae_core.counting import BLOCK_ENTRIES, count_block
from sae_core.merge import merge_runs
from sae_core.run_writer import vocabulary_frame, write_run
from sae_core.schema import TokenTable
from sae_core.statistics import MAX_LAG, MIN_LAG, NATS_UNIT, Statistics

if TYPE_CHECKING:
    from pathlib import Path

WORDS = [b"a", b"b", b"c"]
PAST = 3_000_000_000  # of pairs in one part: two of them are past 2^32


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny.write_model(folder / "model")
    tiny.write_model(folder / "other-model", seed=5)
    shell.write_sae(folder / "sae")
    for at in range(3):
        text = shell.write_text(folder / f"{at}.html", 40 + 9 * at, seed=1000 * at)
        gather(folder, text, folder / f"run{at}")
    return folder


def gather(parts: Path, text: Path, out: Path, *more: object) -> Path:
    words = ["-o", out, "--model", parts / "model", "--sae", parts / "sae", *more]
    done = shell.invoke("gather", text, *words)
    assert done.exit_code == 0, done.stderr
    return out


def foreign(path: Path, ids: list[int], **more: Any) -> Path:
    """Write a run made elsewhere, one document, whose tokens are their features."""
    n = len(ids)
    given: dict[str, Any] = {
        "documents": ["text"],
        "tokens": {"doc_id": np.zeros(n, int), "token_id": ids},
        "indptr": np.arange(n + 1),
        "features": ids,
        "acts": np.ones(n),
        "promotions": np.where(np.arange(n) < n - 1, 1.0, 0.0),
        "vocabulary": WORDS,
        "d_sae": 3,
    }
    return write_run(path, **(given | more))


# The row R13, merging


def test_r13_every_order_of_the_runs_gives_the_same_bytes_through_to_the_graph(
    parts: Path, tmp_path: Path
) -> None:
    found = []
    for at, order in enumerate(permutations(range(3))):
        out = tmp_path / str(at)
        done = shell.invoke("merge", *(parts / f"run{k}" for k in order), "-o", out)
        assert done.exit_code == 0, done.stderr
        circuits.build_graph(out)
        found.append(shell.digests(out))
    assert found[1:] == found[:-1]
    again = shell.invoke("merge", *(parts / f"run{k}" for k in (2, 0, 1)), "-o", tmp_path / "0")
    assert again.exit_code == 0
    assert shell.digests(tmp_path / "0") == found[0]


def test_r13_runs_from_elsewhere_whose_documents_look_alike_have_an_order_too(
    tmp_path: Path,
) -> None:
    runs = [foreign(tmp_path / "a", [0, 1, 2] * 9), foreign(tmp_path / "b", [2, 1, 0] * 9)]
    merge_runs(runs, tmp_path / "one")
    merge_runs(runs[::-1], tmp_path / "other")
    assert shell.digests(tmp_path / "one") == shell.digests(tmp_path / "other")


def test_r13_a_run_from_elsewhere_is_not_counted_twice(tmp_path: Path) -> None:
    run = foreign(tmp_path / "run", [0, 1, 2] * 9)
    shutil.copytree(run, tmp_path / "copy")
    refused = shell.invoke("merge", run, tmp_path / "copy", "-o", tmp_path / "sum")
    assert refused.exit_code == 1
    assert "both hold the document text" in refused.stderr
    assert not (tmp_path / "sum").exists()
    twice = {"doc_id": np.repeat([0, 1], 6), "token_id": [0, 1, 2] * 4}
    same = {"indptr": np.arange(13), "acts": np.ones(12), "promotions": np.zeros(12)}
    repeats = foreign(
        tmp_path / "repeats", [0, 1, 2] * 4, documents=["a", "b"], tokens=twice, **same
    )
    merge_runs([run, repeats], tmp_path / "sum")  # a run may repeat itself


def test_r13_other_models_dictionaries_and_vocabularies_are_refused_by_name(
    parts: Path, tmp_path: Path
) -> None:
    text = shell.write_text(tmp_path / "more.html", 40, seed=77)
    cases = {
        "model_hash": ["--model", parts / "other-model"],
        "sae_hash": ["--sae", shell.write_sae(tmp_path / "sae", seed=3)],
        "keep_acts": ["--no-keep-acts"],
    }
    for field, options in cases.items():
        run = gather(parts, text, tmp_path / field, *options)
        refused = shell.invoke("merge", parts / "run0", run, "-o", tmp_path / "sum")
        assert refused.exit_code == 1
        assert f"was made with {field}" in refused.stderr
        assert "merge runs of one model, dictionary and settings" in refused.stderr
    runs = [
        foreign(tmp_path / "a", [0, 1]),
        foreign(tmp_path / "b", [1, 0], vocabulary=WORDS[::-1]),
    ]
    refused = shell.invoke("merge", *runs, "-o", tmp_path / "sum")
    assert refused.exit_code == 1
    assert "different vocabularies" in refused.stderr
    assert not (tmp_path / "sum").exists()


# The row R14, counts past 2^32


def large_sums(factor: int) -> Statistics:
    """Give the sums of a small stream, as if it had come `factor` times."""
    sums = statistics.collect(naive.random_tokens(0), 7, 5)
    frames: dict[str, Any] = {
        name: getattr(sums, name).with_columns(pl.col(pl.Int64) * factor)
        for name in statistics._KEYS
    }
    counts = {name: getattr(sums, name) * factor for name in statistics._PER_FEATURE}
    counts["act_max"] = sums.act_max
    totals = {name: getattr(sums, name) * factor for name in ("n_tokens", "n_pairs", "n_lag_pairs")}
    return replace(sums, **frames, **counts, **totals, token_counts=sums.token_counts * factor)


def test_r14_sums_past_32_bits_come_back_from_disk_and_from_a_merge_exactly(tmp_path: Path) -> None:
    factor = PAST // 7
    statistics.save(large_sums(factor), tmp_path)
    total = statistics.merge([statistics.load(tmp_path), large_sums(factor), large_sums(1)])
    statistics.save(total, tmp_path / "merged")
    statistics.save(large_sums(2 * factor + 1), tmp_path / "whole")
    assert shell.digests(tmp_path / "merged") == shell.digests(tmp_path / "whole")
    assert int(total.n_fires.max()) > 1 << 32
    assert total.transitions["nats"].max() > 1 << 50  # type: ignore[operator]


def test_r14_runs_whose_sums_are_past_32_bits_are_merged_exactly(tmp_path: Path) -> None:
    runs = []
    for name, ids in (("a", [0, 1, 2] * 9), ("b", [2, 0, 1] * 9)):
        run = foreign(tmp_path / name, ids)
        one = statistics.collect(naive.part(tokens_of(ids), 0, len(ids)), 3, 3)
        big = one.transitions.with_columns(pl.col("n_pairs", "n_promoted", "n_lagged") * PAST)
        statistics.save(replace(one, transitions=big, n_pairs=26 * PAST), run / "statistics")
        runs.append(run)
    merge_runs(runs, tmp_path / "sum")
    found = statistics.load(tmp_path / "sum" / "statistics")
    expected = [statistics.load(run / "statistics") for run in runs]
    assert found.n_pairs == 52 * PAST
    assert found.transitions["n_pairs"].sum() == sum(
        int(one.transitions["n_pairs"].sum()) for one in expected
    )
    assert found.transitions["n_pairs"].max() > 1 << 32  # type: ignore[operator]


def tokens_of(ids: list[int]) -> TokenTable:
    n = len(ids)
    at, zero = np.arange(n), np.zeros(n, np.uint32)
    values = np.ones(n, np.float32)
    ids_at = np.array(ids, np.uint32)
    return TokenTable(
        zero,
        zero,
        at.astype(np.uint32),
        ids_at,
        at,
        at + 1,
        np.arange(n + 1),
        ids_at,
        values,
        values,
    )


def test_r14_evidence_of_counts_past_32_bits_is_that_of_exact_fractions() -> None:
    n, i, j, both, lagged = 9 * PAST, 2 * PAST + 1, PAST + 5, PAST - 7, 3 * PAST
    sums = statistics.empty_statistics(2, 3)
    pairs = {"source": [0], "target": [1], "n_pairs": [both], "n_promoted": [both - 1]}
    row = pl.DataFrame(pairs | {"nats": [both * NATS_UNIT // 4], "n_lagged": [lagged]})
    kinds = {"source": pl.UInt32, "target": pl.UInt32}
    tokens = {"source": [0, 0], "target": [1, 1], "token_id": [0, 1]}
    split = pl.DataFrame(tokens | {"n_pairs": [both - 9, 9], "n_promoted": [both - 10, 9]})
    sums = replace(
        sums,
        n_tokens=n, n_pairs=n, n_lag_pairs=16 * n,
        n_fires=np.array([i, j]), n_source=np.array([i, j]), n_target=np.array([i, j]),
        n_promoted_source=np.array([i - 3, 0]),
        transitions=row.cast(kinds),
        edge_tokens=split.cast(kinds | {"token_id": pl.UInt32}),
    )  # fmt: skip
    found = pair_table(sums).row(0, named=True)
    assert found["n_pairs"] == both
    assert found["lift"] == pytest.approx(float(Fraction(both * n, i * j)), rel=1e-12)
    assert found["p_target_given_source"] == pytest.approx(float(Fraction(both, i)), rel=1e-12)
    promoted = float(Fraction(both - 1, i - 3))
    assert found["p_target_given_promoted"] == pytest.approx(promoted, rel=1e-12)
    assert found["promoted_nats"] == pytest.approx(0.25, rel=1e-9)
    assert found["q_value"] < 1e-9
    assert all(np.isfinite(value) for value in found.values())
    edges = build_edges(sums, vocabulary_frame(WORDS))
    assert edges.edges["n_pairs"].to_list() == [both]
    assert edges.edge_tokens["n_pairs"].to_list() == [both - 9, 9]


def test_r14_counters_of_32_bits_are_too_small_for_no_block() -> None:
    """A lagged counter rises by the features of a block times the lags, at most."""
    assert BLOCK_ENTRIES * (MAX_LAG - MIN_LAG + 1) < 1 << 31


def test_r14_the_lagged_pairs_of_one_long_window_are_counted_past_32_bits() -> None:
    n = 100_000
    tokens = tokens_of([0] * n)
    found = count_block(
        tokens, slice(0, n), d_sae=1, d_vocab=1, lags=(1, n - 1), threshold=0.1, unit=NATS_UNIT
    )
    assert found["transitions"]["n_lagged"].to_list() == [n * (n - 1) // 2]
    assert n * (n - 1) // 2 > 1 << 32
