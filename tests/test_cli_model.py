"""Commands that run a model: gather, merge, trace, truth, evaluate, training and the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
import shell
import tiny
from drawn import html_system

from circuits.discover import write_automata
from sae_core import console
from sae_core.store import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a dictionary and texts."""
    return shell.write_parts(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def gathered(parts: Path) -> Path:
    """A run of the tiny model, with a graph and an automaton drawn by hand."""
    out = parts / "run"
    result = gather(parts, parts / "texts", out)
    assert result.exit_code == 0, result.stderr
    assert shell.invoke("graph", out).exit_code == 0
    automaton = html_system().to_json().replace("311", "21").replace("408", "22")
    automaton = automaton.replace("494", "23")
    write_automata(out, [type(html_system()).from_json(automaton)])
    return out


def gather(parts: Path, text: Path, out: Path, *options: object) -> Result:
    model, sae = parts / "model", parts / "sae"
    return shell.invoke("gather", text, "-o", out, "--model", model, "--sae", sae, *options)


def test_gather_continues_completes_and_refuses(parts: Path, gathered: Path) -> None:
    before = shell.digests(gathered / "tokens")
    again = gather(parts, parts / "texts", gathered)
    assert again.exit_code == 0
    assert "complete" in again.stderr
    assert shell.digests(gathered / "tokens") == before


def test_trace_by_features_reads_new_text_with_the_model(parts: Path, gathered: Path) -> None:
    text = shell.write_text(parts / "new.html", 3, seed=9)
    rows = shell.rows_of(shell.invoke("trace", gathered, "html-tags", text, "--json"))
    assert set(rows[0]) == shell.TRACE_COLUMNS
    assert rows[-1]["byte_end"] == text.stat().st_size
    assert any(row["features"] for row in rows)
    by_tokens = shell.rows_of(
        shell.invoke("trace", gathered, "html-tags", text, "--by", "tokens", "--json")
    )
    ends = [row["byte_end"] for row in rows]
    assert [row["byte_end"] for row in by_tokens] == ends  # the same tokenizer, without the model


def test_truth_measures_neurons_beside_features_once(gathered: Path) -> None:
    first = shell.invoke("truth", gathered, "--kind", "html", "--all-documents", "--json")
    readers = [row["what"] for row in shell.rows_of(first)]
    assert {"features", "neurons", "neurons at equal L0", "neuron probe, all"} <= set(readers)
    assert "automaton html-tags" in readers
    kept = list((gathered / "truth").glob("*"))
    assert len(kept) == 1
    again = shell.invoke("truth", gathered, "--kind", "html", "--all-documents", "--json")
    assert again.stdout == first.stdout
    assert list((gathered / "truth").glob("*")) == kept


def test_evaluate_prints_the_fixed_fields(parts: Path) -> None:
    model, sae = parts / "model", parts / "sae"
    texts = parts / "texts" / "0.html"
    rows = shell.rows_of(
        shell.invoke(
            "evaluate", texts, "--model", model, "--sae", sae, "--sae", "neurons", "--json"
        )
    )
    assert list(rows[0]) == [
        "sae", "n_features", "n_documents", "n_tokens", "l0", "l0_low", "l0_high", "fvu", "fvu_low",
        "fvu_high", "loss_clean", "loss_sae", "loss_zero", "loss_recovered", "loss_recovered_low",
        "loss_recovered_high", "n_dead", "n_ultralow", "dead_share", "norm_ratio",
        "reconstruction_bias", "decoder_cosine", "density_histogram",
    ]  # fmt: skip
    assert rows[1]["sae"] == "neurons"
    assert rows[1]["fvu"] == pytest.approx(0.0, abs=1e-6)


def test_evaluate_prints_a_column_a_dictionary_for_reading(parts: Path) -> None:
    given = ["--model", parts / "model", "--sae", parts / "sae", "--sae", "neurons"]
    result = shell.invoke("evaluate", parts / "texts", *given, *given[2:4])
    assert result.exit_code == 0, result.stderr
    head, *lines = result.stdout.splitlines()
    assert head.split() == [str(parts / "sae"), "neurons"]
    assert lines[0].endswith("tokens of 6 documents")
    (recovered,) = (line for line in lines if line.startswith("loss recovered"))
    assert recovered.endswith("  1 (1 to 1)")
    assert [line for line in lines if line.startswith("dead: never fired in ")]


def test_merge_gives_the_same_bytes_in_any_order(parts: Path) -> None:
    runs = []
    for at in (4, 5):
        runs.append(parts / f"part{at}")
        assert gather(parts, parts / "texts" / f"{at}.html", runs[-1]).exit_code == 0
    for name, order in (("ab", runs), ("ba", runs[::-1])):
        assert shell.invoke("merge", *order, "-o", parts / name).exit_code == 0
    assert shell.digests(parts / "ab") == shell.digests(parts / "ba")
    assert shell.rows_of(shell.invoke("verify", parts / "ab", "--json"))


def test_merged_sums_are_those_of_the_whole(parts: Path) -> None:
    whole = parts / "whole"
    for at in (0, 1):
        assert gather(parts, parts / "texts" / f"{at}.html", parts / f"m{at}").exit_code == 0
    both = [parts / "texts" / f"{at}.html" for at in (0, 1)]
    options = ("-o", whole, "--model", parts / "model", "--sae", parts / "sae")
    assert shell.invoke("gather", *both, *options).exit_code == 0
    assert shell.invoke("merge", parts / "m0", parts / "m1", "-o", parts / "sum").exit_code == 0
    assert shell.digests(parts / "sum" / "statistics") == shell.digests(whole / "statistics")
    merged = pl.read_parquet(parts / "sum" / "tokens" / "*.parquet")
    assert len(merged) == len(pl.read_parquet(whole / "tokens" / "*.parquet"))
    assert merged["window_id"].is_sorted()
    assert merged["doc_id"].n_unique() == 2


def test_train_model_and_train_sae_make_what_gather_reads(tmp_path: Path) -> None:
    tokenizer = tiny.write_tokenizer(tmp_path / "tokenizer.json")
    train = tiny.write_tokens(tmp_path / "train.bin")
    validation = tiny.write_tokens(tmp_path / "validation.bin", n_documents=4, seed=1)
    model, sae = tmp_path / "model", tmp_path / "sae"
    sizes = "--d-model 16 --n-heads 2 --d-mlp 24 --n-ctx 16 --batch-windows 4 --tokens 640"
    result = shell.invoke(
        "train-model", train, validation, "-o", model, "--tokenizer", tokenizer, *sizes.split()
    )
    assert result.exit_code == 0, result.stderr
    more = "--features 32 --active 3 --activations 512 --batch-size 64 --block-windows 8"
    result = shell.invoke("train-sae", model, train, "-o", sae, *more.split())
    assert result.exit_code == 0, result.stderr
    text = shell.write_text(tmp_path / "text.html", 20)
    out = tmp_path / "run"
    result = shell.invoke("gather", text, "-o", out, "--model", model, "--sae", sae)
    assert result.exit_code == 0, result.stderr


def test_train_model_keeps_snapshots_and_says_where_it_is(tmp_path: Path) -> None:
    parts, out = tiny.write_training(tmp_path), tmp_path / "out"
    more = "--snapshots 64,640 --validate-every 4"
    result = shell.invoke(*tiny.train_words("model", parts, out, n_steps=10, more=more))
    assert result.exit_code == 0, result.stderr
    names = sorted(path.name for path in (out / "snapshots").iterdir())
    assert names == ["00000000064", "00000000640"]
    said = [line.split("  ")[0] for line in result.stderr.splitlines()[:-1]]
    assert said == ["step 4/10", "step 8/10", "step 10/10"]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ("--snapshots 64;640", "'64;640' is not a list of whole numbers, such as 1000,4000"),
        ("--snapshots 0", "snapshots must be numbers of tokens in 1..640, got 0"),
        ("--snapshots 64,641", "snapshots must be numbers of tokens in 1..640, got 641"),
        ("--validate-every 0", "0 is not in the range x>=1"),
    ],
)
def test_snapshots_out_of_range_are_wrong_usage(tmp_path: Path, more: str, match: str) -> None:
    parts, out = tiny.write_training(tmp_path), tmp_path / "out"
    result = shell.invoke(*tiny.train_words("model", parts, out, n_steps=10, more=more))
    assert result.exit_code == 2
    assert match in result.stderr
    assert not out.exists()


def test_demo_takes_text_to_pictures_and_the_second_time_is_complete(
    parts: Path, tmp_path: Path
) -> None:
    options = ["--model", parts / "model", "--sae", parts / "sae", "--max-tokens", 4000]
    first = shell.invoke("demo", "-o", tmp_path / "a", *options, "--json")
    rows = shell.rows_of(first)
    assert (tmp_path / "a" / "index.html").is_file()
    for row in rows:
        assert set(row) == {"automaton", "kind", "retention", "held_out_retention", "file"}
        assert (tmp_path / "a" / "automata" / f"{row['automaton']}.svg").is_file()
    before = shell.digests(tmp_path / "a")
    again = shell.invoke("demo", "-o", tmp_path / "a", *options, "--json")
    assert "complete" in again.stderr
    assert again.stdout == first.stdout
    assert shell.digests(tmp_path / "a") == before
    shell.invoke("demo", "-o", tmp_path / "b", *options)
    assert shell.digests(tmp_path / "b") == before


def test_a_table_names_its_documents_wherever_it_lies(parts: Path, tmp_path: Path) -> None:
    hashes = []
    for folder in ("here", "there"):
        table = tmp_path / folder / "texts.parquet"
        table.parent.mkdir()
        rows = {"source": ["html/one/a.html", "html/two/b.html"], "text": ["<p>a b", "<p>c d"]}
        pl.DataFrame(rows).write_parquet(table)
        out = tmp_path / folder / "run"
        assert gather(parts, table, out).exit_code == 0
        sources = pl.read_parquet(out / "documents.parquet")["source"].to_list()
        assert sources == rows["source"]
        hashes.append(read_manifest(out).settings["documents_hash"])
    assert hashes[0] == hashes[1]


def test_numbers_without_a_json_word_are_null() -> None:
    assert console._finite([{"a": float("nan"), "b": [np.inf, 1.0]}]) == [
        {"a": None, "b": [None, 1.0]}
    ]
