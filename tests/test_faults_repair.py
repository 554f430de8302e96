"""Fault R5: files of a run that are cut, flipped, emptied or swapped are named and made again."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import shell
import tiny

from sae_core import gather_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

gathering: Any = import_module("sae_core.gather")  # the name is that of its function
N_WINDOWS, N_SHARDS = 64, 7  # of a shard; of the run
SHARD = "tokens/00002.parquet"
ADVICE = "circuits gather --repair"


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "SHARD_WINDOWS", N_WINDOWS)
        patch.setattr(gather_memory, "GROUP_ENTRIES", 2 * N_WINDOWS * 16)  # sums of a shard or two
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny.write_model(folder / "model")
    shell.write_sae(folder / "sae")
    for name in ("a", "b", "c"):
        shell.write_text(folder / "pages" / f"{name}.html", 70, seed=1000 * ord(name))
    for keep in ("--keep-acts", "--no-keep-acts"):
        assert gather(folder, folder / keep, keep).exit_code == 0
        assert len(list((folder / keep / "tokens").iterdir())) == N_SHARDS
    return folder


@pytest.fixture(params=["--keep-acts", "--no-keep-acts"])
def keep(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def gather(parts: Path, out: Path, *more: object) -> Result:
    words = [parts / "pages", "-o", out, "--model", parts / "model", "--sae", parts / "sae"]
    return shell.invoke("gather", *words, "--held-out", 0.16, *more)


def copy_of(parts: Path, tmp_path: Path, keep: str) -> Path:
    shutil.copytree(parts / keep, tmp_path / "run")
    return tmp_path / "run"


def times(run: Path) -> dict[str, int]:
    files = (path for path in run.rglob("*") if path.is_file())
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in files}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    shutil.copy(path.with_name("00000.parquet"), path)


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, flip, empty, overwrite, lose])
def test_r5_a_damaged_shard_is_named_and_only_it_is_computed_again(
    parts: Path, tmp_path: Path, damage: Callable[[Path], None], keep: str
) -> None:
    run = copy_of(parts, tmp_path, keep)
    before = times(run)
    damage(run / SHARD)
    checked = shell.invoke("verify", run, "--json")
    assert checked.exit_code == 1
    assert [row["file"] for row in json.loads(checked.stdout) if not row["ok"]] == [SHARD]
    assert ADVICE in checked.stderr
    done = gather(parts, run, keep, "--repair")
    assert done.exit_code == 0, done.stderr
    assert f"{run / SHARD} was damaged, and is whole again." in done.stderr
    assert shell.digests(run) == shell.digests(parts / keep)
    after = times(run)
    assert {file for file in after if after[file] != before[file]} == {SHARD}
    assert shell.invoke("verify", run).exit_code == 0


def test_r5_two_shards_that_were_swapped_are_both_computed_again(
    parts: Path, tmp_path: Path, keep: str
) -> None:
    run = copy_of(parts, tmp_path, keep)
    before = times(run)
    one, other, aside = run / SHARD, run / "tokens/00004.parquet", tmp_path / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    assert gather(parts, run, keep, "--repair").exit_code == 0
    assert shell.digests(run) == shell.digests(parts / keep)
    after = times(run)
    changed = {file for file in after if after[file] != before[file]}
    assert changed == {SHARD, "tokens/00004.parquet"}


@pytest.mark.parametrize(
    "files",
    [
        ("statistics/transitions.parquet",),
        ("documents.parquet", "vocabulary.parquet"),
        ("features.parquet", SHARD),
    ],
)
def test_r5_tables_of_the_whole_run_are_made_again_from_the_shards(
    parts: Path, tmp_path: Path, files: tuple[str, ...], keep: str
) -> None:
    run = copy_of(parts, tmp_path, keep)
    before = times(run)
    for file in files:
        cut(run / file)
    assert gather(parts, run, keep, "--repair").exit_code == 0
    assert shell.digests(run) == shell.digests(parts / keep)
    after = times(run)
    assert {file for file in after if after[file] != before[file]} == set(files)


def unfinished(parts: Path, run: Path, keep: str) -> None:
    """Gather, and stop dead after five shards."""
    n_done = iter(range(5))

    def stop(_: int) -> None:
        if next(n_done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gathering.gather(
            [str(parts / "pages")],
            out=run,
            model=str(parts / "model"),
            sae=str(parts / "sae"),
            held_out=0.16,
            keep_acts=keep == "--keep-acts",
            progress=stop,
        )


def test_r5_an_unfinished_run_does_not_go_on_from_damage_until_it_is_repaired(
    parts: Path, tmp_path: Path, keep: str
) -> None:
    run = tmp_path / "run"
    unfinished(parts, run, keep)
    sums = sorted((run / "parts").glob("*/statistics"))
    assert sums
    damaged = [run / SHARD, sums[0] / "transitions.parquet", run / "parts/00003/documents.parquet"]
    for path in damaged:
        flip(path)
    refused = gather(parts, run, keep)
    assert refused.exit_code == 1
    assert SHARD in refused.stderr
    assert "with --repair" in refused.stderr
    before = times(run)
    done = gather(parts, run, keep, "--repair")
    assert done.exit_code == 0, done.stderr
    assert all(str(path) in done.stderr for path in damaged)
    assert shell.digests(run) == shell.digests(parts / keep)
    assert times(run)["tokens/00001.parquet"] == before["tokens/00001.parquet"]


def test_r5_a_repair_from_a_text_that_changed_is_refused_and_replaces_nothing(
    parts: Path, tmp_path: Path
) -> None:
    page, run = shell.write_text(tmp_path / "page.html", 30), tmp_path / "run"
    words = [page, "-o", run, "--model", parts / "model", "--sae", parts / "sae"]
    assert shell.invoke("gather", *words).exit_code == 0
    page.write_bytes(page.read_bytes().replace(b"gamma", b"delta"))  # of the same size
    cut(run / "tokens/00000.parquet")
    before = times(run)
    refused = shell.invoke("gather", *words, "--repair")
    assert refused.exit_code == 1
    assert "tokens/00000.parquet, computed again, is not what was written" in refused.stderr
    assert "--force" in refused.stderr
    assert {file: times(run).get(file) for file in before} == before


def test_r5_what_cannot_be_repaired_is_said(parts: Path, tmp_path: Path) -> None:
    missing = gather(parts, tmp_path / "none", "--repair")
    assert missing.exit_code == 1
    assert "is not a run directory" in missing.stderr
    assert not (tmp_path / "none").exists()
    both = gather(parts, tmp_path / "none", "--repair", "--force")
    assert both.exit_code == 2
    assert "give one of them" in both.stderr
    run = copy_of(parts, tmp_path, "--keep-acts")
    other = gather(parts, run, "--repair", "--max-tokens", 9)
    assert other.exit_code == 1
    assert "max_tokens" in other.stderr
    whole = times(run)
    assert gather(parts, run, "--repair").exit_code == 0
    assert times(run) == whole


def test_r5_a_shard_that_the_manifest_does_not_name_is_seen(parts: Path, tmp_path: Path) -> None:
    run = copy_of(parts, tmp_path, "--keep-acts")
    shutil.copy(run / SHARD, run / "tokens/00009.parquet")
    checked = shell.invoke("verify", run)
    assert checked.exit_code == 1
    assert "tokens/00009.parquet: no shard of this run" in checked.stderr


@pytest.mark.parametrize("damage", [cut, empty, lose])
def test_r5_commands_that_read_a_damaged_table_name_it(
    parts: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run = copy_of(parts, tmp_path, "--keep-acts")
    damage(run / "documents.parquet")
    again = gather(parts, run)
    assert again.exit_code == 1
    assert "documents.parquet" in again.stderr
    assert "--traceback" not in again.stderr
