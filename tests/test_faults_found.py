"""Faults of automata that are found: nothing measured, little text, nothing found, ties, threads, memory."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import harsh
import html5lib
import numpy as np
import polars as pl
import pytest
import shell
from paired_run import every_command, file_of, found_in, write_paired

from circuits.graph_memory import LEAST
from sae_core.memory import A_THREAD, COMPILED

if TYPE_CHECKING:
    from pathlib import Path

HELD_OUT = ("held_out_retention", "held_out_bits_saved", "held_out_coverage")
# What is kept free, and what any graph takes beside the libraries, which map a part of it
ROOM = COMPILED + A_THREAD + LEAST


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = write_paired(tmp_path / "run")
    found_in(path)
    return path


# Nothing measured


def shown_everywhere(run: Path, name: str, out: Path) -> dict[str, str]:
    """Give what the table, the card, the picture and the page say of an automaton's scores."""
    shell.invoke("render", run, name, "-o", out)
    shell.invoke("page", run, "-o", out / "page.html")
    tree = html5lib.parse((out / "page.html").read_text(), namespaceHTMLElements=False)
    cells = ["".join(node.itertext()) for node in tree.iter("tr")]
    return {
        "table": shell.invoke("automata", run).stdout,
        "card": shell.invoke("show", run, name).stdout,
        "picture": (out / f"{name}.svg").read_text(),
        "page": "\n".join([*cells, *("".join(node.itertext()) for node in tree.iter("dl"))]),
    }


def test_without_held_out_text_every_output_says_not_measured(run: Path, tmp_path: Path) -> None:
    name = file_of(run).stem
    for place, text in shown_everywhere(run, name, tmp_path / "out").items():
        assert "not measured" in text, place
        assert "nan" not in text.lower().replace("dominant", ""), place
    result = shell.invoke("automata", run, "--json")
    (row,) = json.loads(result.stdout)
    assert [row[key] for key in HELD_OUT] == [None, None, None]
    assert "No document is held out: held-out scores are not measured" in result.stderr
    scores = json.loads(file_of(run).read_text())["scores"]
    assert [scores[key] for key in HELD_OUT] == [None, None, None]
    assert scores["retention"] > 0.5


def test_with_held_out_text_nothing_is_unmeasured(tmp_path: Path) -> None:
    path = write_paired(tmp_path / "run", held_out=[False, False, False, True])
    name = found_in(path)
    for place, text in shown_everywhere(path, name, tmp_path / "out").items():
        asked_for = re.sub(r"(stability|causal.agreement)[: ]*not measured", "", text)
        assert "not measured" not in asked_for, place
    assert "not measured" not in shell.invoke("automata", path).stderr


@pytest.mark.parametrize("kept", ["none", "one", "no step inside"])
def test_g9_held_out_text_with_hardly_a_firing_measures_what_it_can(
    tmp_path: Path, kept: str
) -> None:
    path = write_paired(tmp_path / "run", held_out=[False, False, False, True])
    shard = next((path / "tokens").glob("*.parquet"))
    tokens = pl.read_parquet(shard).with_row_index("row")
    held = pl.col("doc_id") == 3
    first = tokens.filter(held)["row"].min()
    fires = {
        "none": pl.lit(False),
        "one": pl.col("row") == first,
        "no step inside": pl.col("pos") % 26 == 0,
    }
    keep = ~held | fires[kept]
    emptied = [
        pl.when(keep).then(name).otherwise([]).alias(name)
        for name in ("features", "acts", "promotions")
    ]
    types = {name: tokens.schema[name] for name in ("features", "acts", "promotions")}
    tokens.with_columns(emptied).drop("row").cast(types).write_parquet(shard)
    found_in(path)
    scores = json.loads(file_of(path).read_text())["scores"]
    assert (scores["held_out_coverage"] > 0) == (kept != "none")
    assert scores["held_out_retention"] == (None if kept == "none" else 0.0)
    assert scores["held_out_steps_explained"] is None
    bits = scores["held_out_bits_saved"]
    assert (bits is None) == (kept == "none")
    assert bits is None or np.isfinite(bits)


# Little text


def test_one_document_works_and_says_what_cannot_be_estimated(tmp_path: Path) -> None:
    path = write_paired(tmp_path / "run", n_documents=1)
    name = found_in(path)
    for words in every_command(path, tmp_path / "out"):
        assert shell.invoke(*words).exit_code == 0, words
    result = shell.invoke("truth", path, "--kind", "utf8", "--json")
    rows = shell.rows_of(result)
    assert name in " ".join(str(row["what"]) for row in rows)
    for row in rows:
        ends = [value for key, value in row.items() if key.endswith(("low", "high"))]
        assert ends == [None] * 6
        assert row["accuracy"] is not None
    assert "One document: its second half is scored, and no interval can" in result.stderr
    assert "nan" not in shell.invoke("truth", path, "--kind", "utf8").stdout


def test_a_run_that_is_all_held_out_says_so(tmp_path: Path) -> None:
    path = write_paired(tmp_path / "run", held_out=[True] * 4)
    result = shell.invoke("graph", path)
    assert result.exit_code == 0
    assert "there is none, or all are held out" in result.stderr
    result = shell.invoke("automata", path, "--json")
    assert (result.exit_code, result.stdout) == (0, "[]\n")
    assert "there is none, or all are held out" in result.stderr


def test_g1_automata_not_looked_for_and_none_found_are_told_apart(
    run: Path, tmp_path: Path
) -> None:
    shutil.rmtree(run / "automata")
    never = f"automata were not looked for yet; run `circuits automata {run}`"
    for words, code in (
        (("render", run, "-o", tmp_path / "out"), 0),
        (("render", run, "x", "-o", tmp_path / "out"), 1),
        (("show", run, "x"), 2),
        (("trace", run, "x", run / "manifest.json"), 1),
    ):
        result = shell.invoke(*words)
        assert (result.exit_code, never in result.stderr) == (code, True), words
    page = shell.invoke("page", run, "-o", "-").stdout
    assert never.replace(str(run), "RUN") in page
    assert (
        str(run.parent) not in page
    )  # a page is sent to others, and the same wherever it was made
    edges = pl.read_parquet(run / "graph" / "edges.parquet")
    edges.clear().write_parquet(run / "graph" / "edges.parquet")
    assert shell.invoke("automata", run).exit_code == 0
    result = shell.invoke("render", run, "-o", tmp_path / "out")
    assert (
        f"no automaton was found; `circuits automata {run}` says what is nearest" in result.stderr
    )
    assert not (tmp_path / "out").exists()


# The row G8, ties


def test_g8_the_order_of_a_table_s_rows_changes_no_automaton(run: Path) -> None:
    found = []
    for seed in (None, 1, 2):
        names = ["vocabulary", "documents", "features", "graph/edge_tokens", "graph/edges"]
        for name in names if seed else ():
            file = run / f"{name}.parquet"
            pl.read_parquet(file).sample(fraction=1, shuffle=True, seed=seed).write_parquet(file)
        page = shell.invoke("page", run, "-o", "-").stdout
        assert shell.invoke("automata", run).exit_code == 0
        states = json.loads(file_of(run).read_text())
        states.pop("provenance")  # the hash of what was read
        found.append((states, page.count("<tr")))
    assert found[0] == found[1] == found[2]


# The rows C6 and C7


ALL = """
import sys
import cli
run = sys.argv[1]
for words in (["graph", run], ["automata", run], ["page", run, "-o", run + "/page.html"]):
    cli.cli.main(words, prog_name="circuits", standalone_mode=False)
"""


def test_c6_any_number_of_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for n_threads in ("1", "3", "64"):
        path = write_paired(tmp_path / n_threads / "run")
        names = ("POLARS_MAX_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
        env = shell.environment(**dict.fromkeys(names, n_threads))
        command = [sys.executable, "-c", ALL, str(path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(shell.digests(path))
    assert found[0] == found[1] == found[2]
    assert any(name.startswith("automata/pair") for name in found[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a child's memory so")
@pytest.mark.parametrize(("command", "work"), [("graph", "counting"), ("automata", "looking for")])
def test_c7_a_limit_too_low_is_said_before_the_work_and_nothing_is_lost(
    run: Path, command: str, work: str
) -> None:
    if command == "graph":
        shutil.rmtree(run / "statistics")
    before = shell.digests(run)
    done = harsh.run_limited(ROOM, command, run)
    assert done.exit_code == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {work} ")
    assert "nothing was begun, and what was finished is kept" in line
    assert shell.digests(run) == before
