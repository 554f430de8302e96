"""Faults of texts, models and run directories, made for real; ids are of the table of faults."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import harsh
import polars as pl
import pytest
import shell
import tiny

import circuits
from sae_core.schema import checksum_of

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from click.testing import Result

N_LINES = 4000  # about 120,000 tokens in windows of 16: 14 shards
RESUME = b"run the same command again to go on"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny.write_model(folder / "model")
    shell.write_sae(folder / "sae")
    shell.write_text(folder / "long.html", N_LINES)
    shell.write_text(folder / "short.html", 30)
    return folder


@pytest.fixture(scope="module")
def undisturbed(parts: Path) -> dict[str, str]:
    """The files of a gather of the long text that nothing disturbed."""
    assert gather(parts, parts / "long.html", parts / "whole").exit_code == 0
    return shell.digests(parts / "whole")


@pytest.fixture
def run(parts: Path, tmp_path: Path) -> Path:
    """A finished run of the short text, to be damaged."""
    made = parts / "made"
    if not made.exists():
        assert gather(parts, parts / "short.html", made).exit_code == 0
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def options(parts: Path, out: Path) -> list[object]:
    return ["-o", out, "--model", parts / "model", "--sae", parts / "sae"]


def gather(parts: Path, text: object, out: Path, *more: object) -> Result:
    return shell.invoke("gather", text, *options(parts, out), *more)


def edit(run: Path, *, sign: bool = True, **changes: Any) -> None:
    """Change a manifest's fields, as an editor would, or with a checksum that fits."""
    path = run / "manifest.json"
    fields = json.loads(path.read_text()) | changes
    if sign:
        fields["checksum"] = checksum_of(fields)
    path.write_text(json.dumps(fields))


# The rows of T, text


def test_t1_a_missing_file_is_named_and_nothing_is_written(parts: Path, tmp_path: Path) -> None:
    shell.refused(gather(parts, tmp_path / "no.html", tmp_path / "run"), "no.html")
    (tmp_path / "empty").mkdir()
    shell.refused(gather(parts, tmp_path / "empty", tmp_path / "run"), "folder without text")
    assert not (tmp_path / "run").exists()


def test_t2_blank_files_are_counted_and_all_blank_is_an_error(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n\t")
    (tmp_path / "one.txt").write_text("a")
    shell.refused(
        gather(parts, tmp_path / "blank.txt", tmp_path / "no"), "no text", "empty or blank"
    )
    result = gather(parts, tmp_path, tmp_path / "run")
    assert result.exit_code == 0
    assert "1 document empty or blank, left out" in result.stderr


@pytest.mark.parametrize(
    "data",
    [b"caf\xe9 \xff\xfe", "grün".encode("utf-16"), b"a\x00b\x00", b"\xed\xa0\x80 lone"],
    ids=["latin-1", "utf-16", "nul", "surrogate"],
)
def test_t3_bytes_are_kept_exactly(parts: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "odd.txt").write_bytes(data)
    assert gather(parts, tmp_path / "odd.txt", tmp_path / "run").exit_code == 0
    assert circuits.open_run(tmp_path / "run").document(0) == data


def test_t6_a_truncated_gzip_is_named_as_not_finished(parts: Path, tmp_path: Path) -> None:
    whole = gzip.compress((parts / "short.html").read_bytes())
    (tmp_path / "a.html.gz").write_bytes(whole[: len(whole) * 2 // 3])
    result = gather(parts, tmp_path / "a.html.gz", tmp_path / "run")
    assert result.exit_code == 0
    assert "a.html.gz not finished: its gzip data is cut off" in result.stderr


# The rows of M, model


def test_m2_an_sae_of_another_width_is_refused_before_any_work(parts: Path, tmp_path: Path) -> None:
    wide = shell.write_sae(tmp_path / "wide", d_in=25)
    result = gather(parts, parts / "short.html", tmp_path / "run", "--sae", wide)
    shell.refused(result, "reads 25 numbers", "has 24", "wide", "model")
    assert not (tmp_path / "run").exists()


def test_m3_an_unknown_hook_point_lists_those_there_are(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = gather(parts, parts / "short.html", out, "--hook-point", "blocks.7.mlp.hook_post")
    shell.refused(result, "blocks.7.mlp.hook_post", "it has blocks.0.mlp.hook_post")


def test_m6_text_longer_than_a_window_is_cut_and_each_token_recorded_once(
    parts: Path, run: Path
) -> None:
    tokens = pl.read_parquet(run / "tokens" / "*.parquet")
    assert tokens["window_id"].n_unique() > 1
    assert tokens["pos"].to_list() == list(range(len(tokens)))
    assert tokens["byte_end"].max() == (parts / "short.html").stat().st_size


# The rows of R, runs


def shards_of(out: Path) -> int:
    return len(list((out / "tokens").glob("?????.parquet")))


def wait_for(process: subprocess.Popen[bytes], out: Path, n_shards: int) -> None:
    until = time.monotonic() + 60
    while shards_of(out) < n_shards and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("n_shards", "wait"), [(0, 0.9), (1, 0.0), (3, 0.03), (7, 0.06), (14, 0.0)]
)
def test_r1_a_killed_gather_goes_on_to_the_same_bytes(
    parts: Path, undisturbed: dict[str, str], tmp_path: Path, n_shards: int, wait: float
) -> None:
    out = tmp_path / "run"
    process = shell.start("gather", parts / "long.html", *options(parts, out))
    wait_for(process, out, n_shards)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = {path.name: path.stat().st_ino for path in (out / "tokens").glob("?????.parquet")}
    finished = json.loads((out / "manifest.json").read_text()) if out.exists() else {}
    kept = {f"{shard['name']}.parquet" for shard in finished.get("shards", [])}
    result = gather(parts, parts / "long.html", out)
    assert result.exit_code == 0, result.stderr
    assert shell.digests(out) == undisturbed
    for name in kept:  # not written again
        assert (out / "tokens" / name).stat().st_ino == done[name]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_r3_a_signal_stops_gather_and_says_how_to_go_on(
    parts: Path, undisturbed: dict[str, str], tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "run"
    process = shell.start("gather", parts / "long.html", *options(parts, out))
    wait_for(process, out, 2)
    process.send_signal(number)
    stdout, stderr = process.communicate()
    assert process.returncode == code
    assert stdout == b""
    assert RESUME in stderr
    assert b"Traceback" not in stderr
    assert not (out / ".lock").exists()
    assert gather(parts, parts / "long.html", out).exit_code == 0
    assert shell.digests(out) == undisturbed


def test_r6_a_missing_or_empty_manifest_is_named(run: Path) -> None:
    (run / "manifest.json").write_text("")
    shell.refused(shell.invoke("graph", run), "manifest.json")
    (run / "manifest.json").unlink()
    shell.refused(shell.invoke("graph", run), "manifest.json is missing", "circuits gather")
    shell.refused(shell.invoke("graph", run / "none"), "is not a run directory")


def test_r6_a_newer_version_is_refused_politely(run: Path) -> None:
    edit(run, format_version=2)
    shell.refused(shell.invoke("verify", run), "format_version 2", "upgrade")


def test_r6_another_format_is_refused(run: Path) -> None:
    edit(run, format="some-other-run")
    shell.refused(shell.invoke("query", run, "select 1"), "sae-automata-run")


def test_r6_a_hand_edited_manifest_is_refused(run: Path) -> None:
    edit(run, sign=False, d_sae=31)
    shell.refused(shell.invoke("graph", run), "changed after it was written", "--force")


def test_r6_a_foreign_run_of_four_keys_is_read(run: Path) -> None:
    fields = json.loads((run / "manifest.json").read_text())
    four = {key: fields[key] for key in ("format", "format_version", "d_sae", "d_vocab")}
    (run / "manifest.json").write_text(json.dumps(four))
    for name in ("statistics", "features.parquet", "logit_effects.parquet"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for command in ("graph", "automata"):
        result = shell.invoke(command, run)
        assert result.exit_code == 0, result.stderr


def test_r7_another_setting_is_refused_with_both_values(parts: Path, run: Path) -> None:
    text = parts / "short.html"
    shell.refused(gather(parts, text, run, "--held-out", 0.5), "held_out 0.2", "0.5", "--force")
    shell.refused(gather(parts, text, run, "--max-tokens", 9), "max_tokens None", "9")
    shell.refused(gather(parts, text, run, "--no-keep-acts"), "keep_acts")
    shell.refused(gather(parts, parts / "long.html", run), "documents_hash")
    other = shell.write_sae(run.parent / "other", seed=1)
    shell.refused(gather(parts, text, run, "--sae", other), "sae_hash")


def test_r10_the_same_again_is_complete_and_writes_nothing(parts: Path, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = gather(parts, parts / "short.html", run)
    assert result.exit_code == 0
    assert "complete" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} | {run: 0} == before | {
        run: 0
    }


def test_r10_force_replaces_the_whole_run(parts: Path, run: Path) -> None:
    (run / "graph").mkdir()
    (run / "graph" / "edges.parquet").write_bytes(b"old")
    result = gather(parts, parts / "short.html", run, "--max-tokens", 50, "--force")
    assert result.exit_code == 0
    assert not (run / "graph").exists()
    assert json.loads((run / "manifest.json").read_text())["settings"]["max_tokens"] == 50


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_r10_a_file_or_folder_that_is_not_ours_is_left_alone(
    parts: Path, tmp_path: Path, force: list[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    shell.refused(gather(parts, parts / "short.html", mine, *force), "no run", "-o")
    shell.refused(gather(parts, parts / "short.html", mine / "thesis.tex", *force), "is a file")
    shell.refused(shell.invoke("demo", "-o", mine, *force), "no demo")
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    assert (mine / "thesis.tex").read_text() == "years of work"


def test_r10_a_picture_that_exists_is_replaced_only_when_asked(run: Path, tmp_path: Path) -> None:
    assert shell.invoke("graph", run).exit_code == 0
    assert shell.invoke("automata", run).exit_code == 0
    page = tmp_path / "page.html"
    page.write_text("mine")
    shell.refused(shell.invoke("page", run, "-o", page), "page.html", "--force")
    assert page.read_text() == "mine"
    assert shell.invoke("page", run, "-o", page, "--force").exit_code == 0
    assert shell.invoke("page", run, "-o", page).exit_code == 0  # the same again


def test_r10_what_a_killed_writer_left_is_no_obstacle(parts: Path, run: Path) -> None:
    fresh = run.parent / "fresh"
    fresh.mkdir()
    (fresh / "manifest.json.77.tmp").write_text("{")
    (fresh / ".lock").write_text('{"pid": 99999999, "host": "' + os.uname().nodename + '"}')
    assert gather(parts, parts / "short.html", fresh).exit_code == 0
    assert shell.digests(fresh) == shell.digests(run)


def test_r5_verify_names_the_damaged_file_and_exits_1(run: Path) -> None:
    shard = run / "tokens" / "00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    result = shell.invoke("verify", run, "--json")
    assert result.exit_code == 1
    rows = {row["file"]: row for row in json.loads(result.stdout)}
    assert not rows["tokens/00000.parquet"]["ok"]
    assert rows["documents.parquet"]["ok"]
    assert "tokens/00000.parquet" in result.stderr
    assert shell.invoke("merge", run, run.parent / "x", "-o", run.parent / "y").exit_code == 1


def test_r13_runs_that_share_a_document_are_refused(run: Path) -> None:
    copy = run.parent / "copy"
    shutil.copytree(run, copy)
    shell.refused(
        shell.invoke("merge", run, copy, "-o", run.parent / "sum"), "short.html", "double"
    )


def test_r13_runs_of_other_settings_are_refused(parts: Path, run: Path) -> None:
    other = run.parent / "other"
    text = shell.write_text(run.parent / "b.html", 20, seed=7)
    assert gather(parts, text, other, "--held-out", 0.1).exit_code == 0
    shell.refused(
        shell.invoke("merge", run, other, "-o", run.parent / "sum"), "held_out", "0.1", "0.2"
    )
    assert not (run.parent / "sum").exists()


@pytest.mark.parametrize(("count", "wait"), [(0, 0.5), (1, 0.0), (2, 0.02)])
def test_r1_a_killed_merge_goes_on_to_the_same_bytes(
    parts: Path, tmp_path: Path, count: int, wait: float
) -> None:
    runs = []
    for at in range(3):
        text = shell.write_text(tmp_path / f"{at}.html", 400, seed=1000 * at)
        runs.append(tmp_path / f"run{at}")
        assert gather(parts, text, runs[-1]).exit_code == 0
    assert shell.invoke("merge", *runs, "-o", tmp_path / "whole").exit_code == 0
    out = tmp_path / "sum"
    process = shell.start("merge", *runs, "-o", out)
    wait_for(process, out, count)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert shell.invoke("merge", *runs, "-o", out).exit_code == 0
    assert shell.digests(out) == shell.digests(tmp_path / "whole")


def test_r9_a_read_only_folder_is_named(parts: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    with harsh.read_only(closed, tmp_path / "mounted") as place:
        shell.refused(gather(parts, parts / "short.html", place / "run"), str(place))
